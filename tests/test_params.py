"""params.yaml arrives exactly as written, or not at all."""

from dataclasses import FrozenInstanceError, dataclass

import pytest

from higgs.params import (
    RELEASED_CODEC,
    RELEASED_MODEL,
    RELEASED_MODEL_REVISION,
    Checkpoint,
    GenerateParams,
    ParamsError,
    from_section,
    load_section,
    parse_yaml,
    read_params,
    worker_count,
)

GOOD = """
seed: 0
repeatable: true
workers: null
checkpoint: nano
tokenize: {recordings: a, languages: [en], max_clips: null, pad_to_hop: true,
  codebook_counts: [1, 8], players: 3}
generate: {temperature: 1e-4, top_k: null, top_p: 1, ras_window: 7, ras_max_repeats: 2,
  max_new_tokens: 400, seeds: [0, 1], repeated_texts: null, players: 2}
evaluate: {set: default, judge: moonshine-tiny-en, speaker_encoder: ge2e, naturalness: null, naturalness_texts: null,
  languages: [en], second_system: null, jitter_clips: null, jitter_copies: 1,
  bootstrap_resamples: 1000, coverage_trials: 100, players: 6}
"""


@dataclass(frozen=True)
class Kinds:
    number: float
    count: int
    flag: bool
    word: str
    counts: list[int]
    words: list[str]
    maybe: int | None
    rest: int = 3


KINDS = {
    "number": 0.5,
    "count": 1,
    "flag": False,
    "word": "no",
    "counts": [1, 2],
    "words": [],
    "maybe": None,
}


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
    assert generate.temperature == 1e-4
    assert type(generate.top_p) is float and generate.top_k is None and generate.seeds == [0, 1]
    assert (generate.seed, generate.repeatable, generate.checkpoint) == (0, True, "nano")
    assert load_section("tokenize", path).pad_to_hop is True
    assert load_section("evaluate", path).bootstrap_resamples == 1000
    assert generate.set == load_section("evaluate", path).set == "default"  # it is written once
    with pytest.raises(FrozenInstanceError):
        generate.seed = 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("temperature:", "temprature:", "unknown key 'temprature'.*did you mean 'temperature'"),
        ("temperature: 1e-4, ", "", "generate: missing key 'temperature'"),
        (
            "temperature: 1e-4",
            "temperature: '1e-4'",
            "generate.temperature: expected float, got str '1e-4'",
        ),
        ("temperature: 1e-4", "temperature: true", "expected float, got bool True"),
        ("temperature: 1e-4", "temperature: .nan", "expected a finite number"),
        ("temperature: 1e-4", "temperature: null", "expected float, got null"),
        ("max_new_tokens: 400", "max_new_tokens: 4e2", "expected int, got float 400.0"),
        ("seeds: [0, 1]", "seeds: 0", "generate.seeds: expected a list, got int 0"),
        ("seeds: [0, 1]", "seeds: [0, true]", r"generate.seeds\[1\]: expected int, got bool True"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "none twice"),
        ("seeds: [0, 1]", "seeds: []", "at least one entry"),
        ("seed: 0", "seed: false", "^seed: expected int, got bool False"),
        ("repeatable: true", "repeatable: 1", "repeatable: expected bool, got int 1"),
        (
            "repeated_texts: null",
            "repeated_texts: -1",
            "repeated_texts: expected null or 0 or more",
        ),
        ("workers: null\n", "", "missing key 'workers'"),
        ("seed: 0", "seeed: 0", "unknown key 'seeed'.*did you mean 'seed'.*missing key 'seed'"),
        ("seed: 0", "seed: 0\nseed: 1", 'duplicate key "seed"'),
        ("set: default", "set: default, set: c", 'duplicate key "set"'),
        ("{temperature", "{seed: 4, temperature", "seed belongs beside the section"),
        ("{temperature", "{set: b, temperature", "generate.set: belongs into the section evaluate"),
        ("generate: {", "generate: [], other: {", "params.yaml"),
    ],
)
def test_what_is_wrong_is_refused(write, old, new, message):
    assert old in GOOD
    with pytest.raises(ParamsError, match=message):
        load_section("generate", write(GOOD.replace(old, new, 1)))


def test_a_word_is_no_boolean(write):
    path = write(GOOD.replace("pad_to_hop: true", "pad_to_hop: no"))
    assert read_params(path)["tokenize"]["pad_to_hop"] == "no"
    with pytest.raises(
        ParamsError, match="pad_to_hop: expected bool, got str 'no'.*true and false"
    ):
        load_section("tokenize", path)


def test_unknown_stage_names_the_choices(write):
    with pytest.raises(ParamsError, match="did you mean 'generate'.*tokenize"):
        load_section("genrate", write(GOOD))


def test_the_file_must_be_a_mapping(write):
    with pytest.raises(ParamsError, match="expected a mapping"):
        read_params(write("- 1\n"))
    with pytest.raises(ParamsError, match="expected ',' or ']'"):
        parse_yaml("[1")


def test_the_reader_is_dvcs(write):
    serialize = pytest.importorskip("dvc.utils.serialize")
    text = GOOD + "more: {a: 0o17, b: 1_000, c: ~, d: No, e: 1E5, f: 1.10, g: '1'}\n"
    assert read_params(write(text)) == serialize.parse_yaml(text, "params.yaml")


def test_from_section_works_for_any_dataclass():
    assert from_section(Kinds, KINDS) == Kinds(**KINDS)
    assert from_section(Kinds, {**KINDS, "number": 2, "maybe": 4}, rest=5).number == 2.0
    for name, wrong in {
        "count": True,
        "flag": 1,
        "word": 1,
        "counts": (1,),
        "words": [1],
        "maybe": "1",
    }.items():
        with pytest.raises(ParamsError, match=f"Kinds.{name}"):
            from_section(Kinds, {**KINDS, name: wrong})


def test_checkpoint_is_one_key(tmp_path):
    nano = Checkpoint.parse("nano")
    assert (nano.model, nano.codec) == (
        "data/checkpoints/nano/model",
        "data/checkpoints/nano/codec",
    )
    assert (nano.dtype, nano.device) == ("float32", "cpu")
    released = Checkpoint.parse(f"{RELEASED_MODEL}@{RELEASED_MODEL_REVISION}")
    assert released.model == f"{RELEASED_MODEL}@{RELEASED_MODEL_REVISION}"
    assert released.codec == RELEASED_CODEC
    assert (released.dtype, released.device) == ("bfloat16", "auto")
    for part, said in (
        ("model", "has no model/ and no codec/ in it$"),
        ("codec", "has no codec/ in it$"),
    ):
        with pytest.raises(ParamsError, match=said):
            Checkpoint.parse(str(tmp_path))
        (tmp_path / part).mkdir()
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(ParamsError, match="in it: name the folder above it"):
        Checkpoint.parse(str(tmp_path / "model"))
    folder = Checkpoint.parse(str(tmp_path))
    assert folder.model == f"{tmp_path}/model" and (folder.dtype, folder.device) == ("auto", "auto")
    assert Checkpoint.parse("s3://bucket/nano/").codec == "s3://bucket/nano/codec"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RELEASED_MODEL, f"pin a full commit: write {RELEASED_MODEL}@{RELEASED_MODEL_REVISION}"),
        ("someone/finetuned", "pin a full commit"),
        ("someone/finetuned@main", "pin a full commit"),
        ("nanno", "neither 'nano'"),
        ("no/such/folder", "neither 'nano'"),
    ],
)
def test_checkpoints_that_move_or_are_not_there(text, message):
    with pytest.raises(ParamsError, match=message):
        Checkpoint.parse(text)


@pytest.mark.parametrize("count", [0, -1, True, "two", 1.5])
def test_workers_are_counted(write, count):
    params = read_params(write(GOOD))
    assert worker_count(params) is None and worker_count(params | {"workers": 3}) == 3
    with pytest.raises(ParamsError, match="workers: expected null or 1 or more"):
        worker_count(params | {"workers": count})
