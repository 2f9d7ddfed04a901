"""params.yaml arrives exactly as written, or not at all."""

import re

import pytest
from pydantic import ValidationError

from higgs.checkpoint.alias import RELEASED_CODEC, RELEASED_MODEL, RELEASED_MODEL_REVISION, Checkpoint
from higgs.validation import ParamsError, Record, parse_yaml, validate
from higgs.workflow.params import SECTIONS, GenerateParams, from_section, placement, read_params, scalars_of, select

GOOD = """
seed: 0
repeatable: true
workers: null
checkpoint: nano
set: default
tokenize: {recordings: a, languages: [en], max_clips: null, skip: [], pad_to_hop: true,
  codebook_counts: [1, 8], players: 3}
generate: {temperature: 1e-4, top_k: null, top_p: 1, ras_window: 7, ras_max_repeats: 2, strict_eos: null,
  max_new_tokens: 400, seeds: [0, 1], repeated_texts: null, players: 2}
evaluate: {judge: moonshine-tiny-en, speaker_encoder: ge2e, naturalness: null, naturalness_texts: null,
  languages: [en], second_system: null, jitter_clips: null, jitter_copies: 1,
  bootstrap_resamples: 1000, coverage_trials: 100, players: 6}
"""


class Inner(Record):
    word: str = "-"


class Outer(Inner):
    inner: list[Inner]


def load_section(stage, path):
    values = select(read_params(path), stage)
    return from_section(SECTIONS[stage], values.pop(stage), **values)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        return path

    return write


def test_every_section_loads_with_its_scalars(write):
    path = write(GOOD)
    generate = load_section("generate", path)
    assert isinstance(generate, GenerateParams)
    assert generate.temperature == 1e-4 and generate.top_k is None and generate.seeds == [0, 1]
    assert type(generate.top_p) is float
    assert (generate.seed, generate.repeatable, generate.checkpoint) == (0, True, "nano")
    assert load_section("tokenize", path).pad_to_hop is True
    assert load_section("evaluate", path).bootstrap_resamples == 1000
    assert generate.set == load_section("evaluate", path).set == "default"
    assert scalars_of("tokenize") == ["seed", "repeatable", "checkpoint"]
    with pytest.raises(ValidationError, match="frozen"):
        generate.seed = 1


# What is written in place of what, the place of the fault, and what else the message has.
@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("temperature:", "temprature:", "generate", "temprature.*did you mean 'temperature'.*temperature"),
        ("temperature: 1e-4, ", "", "generate", "'temperature'"),
        ("temperature: 1e-4", "temperature: '1e-4'", "generate.temperature", "'1e-4'"),
        ("temperature: 1e-4", "temperature: true", "generate.temperature", "True"),
        ("temperature: 1e-4", "temperature: .nan", "generate.temperature", "nan"),
        ("max_new_tokens: 400", "max_new_tokens: 4e2", "generate.max_new_tokens", "400.0"),
        ("seeds: [0, 1]", "seeds: [0, true]", "generate.seeds[1]", "True"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "generate.seeds", r"\[0, 0\]"),
        ("seeds: [0, 1]", "seeds: []", "generate.seeds", r"\[\]"),
        ("seed: 0", "seed: false", "seed", "False"),
        ("checkpoint: nano", "checkpoint: nanno", "checkpoint", "nanno"),
        ("repeated_texts: null", "repeated_texts: -1", "generate.repeated_texts", "-1"),
        ("workers: null\n", "", "params.yaml", "'workers'"),
        ("seed: 0", "seeed: 0", "params.yaml", "seeed.*did you mean 'seed'.*'seed'"),
        ("seed: 0", "seed: 0\nseed: 1", "params.yaml", 'duplicate key "seed"'),
        ("set: default", "set: ''", "set", "''"),
        ("{temperature", "{seed: 4, temperature", "generate", "seed belongs beside the section"),
        ("{temperature", "{set: b, temperature", "generate", "set belongs beside the section"),
        ("generate: {", "generate: [], other: {", "params.yaml", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(write, old, new, place, message):
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    with pytest.raises(ParamsError, match=f"(?s){re.escape(place)}: .*{message}"):
        load_section("generate", path)


def test_all_faults_are_reported_at_once(write):
    text = GOOD.replace("seed: 0", "seed: -1").replace("top_p: 1", "top_p: no, tpo_k: 3")
    with pytest.raises(ParamsError, match="(?s)seed: .*generate.top_p: .*generate: unknown key 'tpo_k'"):
        load_section("generate", write(text))


def test_a_word_is_no_boolean_and_stages_and_mappings_are_checked(write):
    path = write(GOOD.replace("pad_to_hop: true", "pad_to_hop: no"))
    with pytest.raises(ParamsError, match="tokenize.pad_to_hop: .*'no'"):
        load_section("tokenize", path)
    with pytest.raises(ParamsError, match="did you mean 'generate'.*tokenize"):
        load_section("genrate", path)
    with pytest.raises(ParamsError, match=r"params.yaml: .*\[1\]"):
        read_params(write("- 1\n"))
    with pytest.raises(ParamsError, match="expected ',' or ']'"):
        parse_yaml("[1")


def test_the_reader_is_dvcs(write):
    serialize = pytest.importorskip("dvc.utils.serialize")
    text = GOOD + "more: {a: 0o17, b: 1_000, c: ~, d: No, e: 1E5, f: 1.10, g: '1'}\n"
    assert read_params(write(text)) == serialize.parse_yaml(text, "params.yaml")


def test_keys_are_advised_where_they_stand():
    with pytest.raises(KeyError, match="unknown key 'wrod'") as caught:
        validate(Outer, {"inner": [{"wrod": "x"}, {"word": 1}], "wrod": 1}, "here", KeyError)
    for place in ("inner[0]: unknown key 'wrod' (did you mean 'word'?", "here: unknown key 'wrod'", "inner[1].word"):
        assert place in str(caught.value)


def test_checkpoint_is_one_key(tmp_path):
    nano = Checkpoint.parse("nano")
    assert (nano.model, nano.codec) == ("data/checkpoints/nano/model", "data/checkpoints/nano/codec")
    assert (nano.dtype, nano.device) == ("float32", "cpu")
    released = Checkpoint.parse(f"{RELEASED_MODEL}@{RELEASED_MODEL_REVISION}")
    assert released.model == f"{RELEASED_MODEL}@{RELEASED_MODEL_REVISION}"
    assert released.codec == RELEASED_CODEC
    assert (released.dtype, released.device) == ("bfloat16", "auto")
    for part, message in (("model", "has no model/ and no codec/ in it$"), ("codec", "has no codec/ in it$")):
        with pytest.raises(ParamsError, match=message):
            Checkpoint.parse(str(tmp_path))
        (tmp_path / part).mkdir()
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(ParamsError, match="in it: name the folder above it"):
        Checkpoint.parse(str(tmp_path / "model"))
    folder = Checkpoint.parse(str(tmp_path))
    assert folder.model == f"{tmp_path}/model" and (folder.dtype, folder.device) == ("auto", "auto")
    assert Checkpoint.parse("s3://bucket/nano/").codec == "s3://bucket/nano/codec"


def test_checkpoints_that_move_or_are_not_there():
    pinned = f"pin a full commit: write {RELEASED_MODEL}@{RELEASED_MODEL_REVISION}"
    for text, message in (
        (RELEASED_MODEL, pinned), ("someone/finetuned@main", "pin a full commit"), ("no/such/folder", "neither 'nano'"),
    ):  # fmt: skip
        with pytest.raises(ParamsError, match=message):
            Checkpoint.parse(text)


def test_workers_are_counted():
    assert placement({"workers": None}).workers is None and placement({"workers": 3}).workers == 3
    for count in (0, True, 1.5):
        with pytest.raises(ParamsError, match=f"workers: .*{count!r}"):
            placement({"workers": count})


def test_the_places_of_a_job_are_checked_and_are_no_parameters_of_a_stage(write):
    good = (
        {}, {"cluster": None, "work": None}, {"cluster": "local"}, {"cluster": "local", "work": "s3://b"},
        {"cluster": "auto", "work": "s3://b/p"}, {"cluster": "10.0.0.1:6379", "work": "s3://b/p/"},
        {"device": "cpu"}, {"device": "cuda"}, {"device": "cuda:RTX-PRO-6000"},
    )  # fmt: skip
    nothing = {"workers": 2, "cluster": None, "work": None, "device": None}
    for places in good:
        assert dict(placement({"workers": 2} | places)) == nothing | places
    bad = (
        ({"cluster": "auto"}, "auto needs work"), ({"cluster": "host:1"}, "host:1 needs work"),
        ({"cluster": "ray://host:1", "work": "s3://b"}, "cluster"), ({"cluster": 1}, "cluster"),
        ({"cluster": "host", "work": "s3://b"}, "cluster"), ({"work": "results"}, "work"),
        ({"work": "s3:///p"}, "work"), ({"work": "s3://b/p q"}, "work"),
        *(({"device": device}, "device") for device in ("gpu", "cuda:0", "cuda:", "cuda:H100\n", "H100", 0, True, "")),
    )  # fmt: skip
    for places, message in bad:
        with pytest.raises(ParamsError, match=message):
            placement({"workers": None} | places)
    path = write(GOOD + "cluster: local\nwork: s3://b/p\ndevice: cuda:H100\n")
    assert set(select(read_params(path), "generate")) == {"seed", "repeatable", "checkpoint", "set", "generate"}
