"""How a checkpoint is meant to be used: the file beside its weights, and who reads it."""

import json
import shutil
from dataclasses import replace

import pytest
from conftest import ROOT

from higgs import Engine, SamplingConfig
from higgs.checkpoint.folder import GENERATION_CONFIG
from higgs.checkpoint.resolve import fingerprint
from higgs.data.chatml import smart_voice
from higgs.data.scripts import read_scripts
from higgs.data.text.chunks import ChunkOptions
from higgs.serve.generation import GenerationConfig
from training.nano.sizes import NANO_GENERATION

NANO = SamplingConfig(temperature=0.2, top_k=20, top_p=1.0, ras_window=7, ras_max_repeats=2, strict_eos=True)
RELEASE = SamplingConfig(temperature=0.7, top_k=50, top_p=0.95, ras_window=7, ras_max_repeats=2, strict_eos=False)


@pytest.fixture
def write(tmp_path):
    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / GENERATION_CONFIG).write_text(text)
        return GenerationConfig.from_pretrained(tmp_path)

    return write


def test_the_default_checkpoint(nano):
    own = GenerationConfig.from_pretrained(nano / "model")
    chunks = ChunkOptions(max_words=14, context_chunks=0, per_speaker_context=True)
    assert own == GenerationConfig(NANO, chunks)
    assert json.loads((nano / "model" / GENERATION_CONFIG).read_text()) == NANO_GENERATION


def test_without_a_file_it_is_as_the_release(tmp_path):
    own = GenerationConfig.from_pretrained(tmp_path)
    assert own == GenerationConfig(RELEASE, ChunkOptions(max_words=100), 1024)


def test_what_is_left_out_is_as_the_release(write):
    assert write({"strict_eos": True}).sampling == replace(RELEASE, strict_eos=True)
    assert write({"temperature": None, "chunking": None}) == GenerationConfig()
    assert write({"chunking": {"retries": 0}}).chunks == ChunkOptions(retries=0)
    assert write({"max_new_tokens": 9}).max_new_tokens == 9


def test_fields_of_transformers(write):
    """The file of the release, and what the port in transformers calls repetition-aware sampling."""
    theirs = {"_from_model_config": True, "bos_token_id": 128000, "transformers_version": "5.0"}
    assert write(theirs | {"eos_token_id": [128009, 128012]}) == GenerationConfig()
    assert write({"temperature": 1, "do_sample": True}).sampling.temperature == 1.0
    assert write({"temperature": 0.5, "do_sample": False}).sampling.temperature == 0
    assert write({"ras_win_len": 9, "ras_win_max_num_repeat": 3}).sampling == replace(
        RELEASE, ras_window=9, ras_max_repeats=3
    )


def test_transformers_reads_the_file_of_the_default_checkpoint(nano):
    from transformers import GenerationConfig as Theirs

    read = Theirs.from_pretrained(nano / "model")
    assert (read.do_sample, read.temperature, read.top_k, read.top_p) == (True, 0.2, 20, 1.0)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"temperature": "hot"}, "temperature: .*'hot'"),
        ({"temperature": -1}, "temperature: .*-1"),
        ({"temprature": 1.0}, "unknown key 'temprature': did you mean 'temperature'"),
        ({"top_k": True}, "top_k: .*True"),
        ({"top_k": -1}, "top_k: .*-1"),
        ({"top_p": 0}, "top_p: .*0"),
        ({"ras_window": 65}, "ras_window: .*64, got 65"),
        ({"ras_win_len": -1}, "ras_window: .*-1"),
        ({"strict_eos": 1}, "strict_eos: .*1"),
        ({"do_sample": "no"}, "do_sample: .*'no'"),
        ({"max_new_tokens": 0}, "max_new_tokens: .*0"),
        ({"chunking": []}, "chunking: "),
        ({"chunking": {"max_word": 14}}, "chunking: unknown key 'max_word'"),
        ({"chunking": {"max_words": 0}}, "chunking.max_words: .*0"),
        ({"chunking": {"retries": 1.5}}, "chunking.retries: .*1.5"),
        ("{", "damaged"),
        ("[]", "expected a JSON object"),
    ],
)
def test_what_is_wrong_names_the_file_and_the_key(write, content, key):
    with pytest.raises(ValueError, match=f"{GENERATION_CONFIG}.*{key}"):
        write(content)


def test_options_take_its_place():
    assert NANO.override(temperature=None, seed=None) == NANO
    assert NANO.override(temperature=0.0, top_p=0.5, strict_eos=False) == replace(
        NANO, temperature=0.0, top_p=0.5, strict_eos=False
    )
    assert NANO.override(top_k=0, ras_window=0) == replace(NANO, top_k=None, ras_window=None)


def test_the_engine_speaks_with_it(nano):
    engine = Engine.from_pretrained(nano / "model", nano / "codec", device="cpu")
    assert engine.generation.sampling == NANO
    sample = smart_voice("Good morning.")
    asked = [engine.generate(sample, sampling, 40).codes for sampling in (None, NANO, RELEASE)]
    assert asked[0].equal(asked[1]) and not asked[0].equal(asked[2])
    (batched,) = engine.generate_batch([sample], None, 40)
    (mixed,) = engine.generate_batch([sample], [None], 40)
    assert batched.codes.equal(asked[0]) and mixed.codes.equal(asked[0])
    engine.generation = replace(engine.generation, max_new_tokens=12)
    assert engine.generate(sample).usage.audio_steps == 12


def test_a_tuned_checkpoint_has_it_and_other_settings_are_another_checkpoint(nano, tmp_path):
    from higgs import HiggsAudio
    from higgs.train.finetune import save_tuned

    tuned = tmp_path / "tuned"
    save_tuned(HiggsAudio.from_pretrained(nano / "model"), nano / "model", tuned)
    assert GenerationConfig.from_pretrained(tuned).sampling == NANO
    before = fingerprint(tuned)
    (tuned / GENERATION_CONFIG).write_text("{}")
    changed = fingerprint(tuned)
    (tuned / GENERATION_CONFIG).unlink()
    assert len({before, changed, fingerprint(tuned)}) == 3


def test_scripts_leave_to_it_what_they_do_not_say(tmp_path):
    shutil.copy(ROOT / "data" / "voices" / "profiles.json", tmp_path)
    row = {"id": "a", "form": "long_form", "voice": "ada", "text": "One two. Three four. Five."}
    (tmp_path / "s.jsonl").write_text(json.dumps(row | {"chunks": {"retries": 0}}))
    own = ChunkOptions(max_words=2, context_chunks=0)
    (script,) = read_scripts(tmp_path / "s.jsonl", tmp_path, own)
    assert script.options == ChunkOptions(max_words=2, context_chunks=0, retries=0)
    assert [chunk.text for chunk in script.chunks] == ["One two.", "Three four.", "Five."]
