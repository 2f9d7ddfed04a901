"""`generation_config.json`: the settings of a checkpoint, and their users."""

import json
import shutil
from dataclasses import replace

import pytest
from conftest import ROOT
from transformers import GenerationConfig as TransformersConfig

from higgs import HiggsAudio, SamplingConfig
from higgs.checkpoint.resolve import fingerprint
from higgs.checkpoint.tensors import GENERATION_CONFIG
from higgs.data.chatml import smart_voice
from higgs.data.scripts import read_scripts
from higgs.data.text.chunks import ChunkOptions
from higgs.data.text.lexicon import FILE as LEXICON
from higgs.serve.generation_config import GenerationConfig
from higgs.train.finetune import save_tuned
from training.nano.sizes import NANO_GENERATION

NANO = SamplingConfig(temperature=0.2, top_k=20, top_p=1.0, ras_window=7, ras_max_repeats=2, strict_eos=True)
RELEASE = SamplingConfig(temperature=0.7, top_k=50, top_p=0.95, ras_window=7, ras_max_repeats=2, strict_eos=False)


@pytest.fixture
def write(tmp_path):
    def write(content):
        if content is not None:
            (tmp_path / GENERATION_CONFIG).write_text(content if isinstance(content, str) else json.dumps(content))
        return GenerationConfig.from_pretrained(tmp_path)

    return write


def test_the_default_checkpoint(nano):
    own = GenerationConfig.from_pretrained(nano / "model")
    assert own == GenerationConfig(NANO, ChunkOptions(max_words=14, context_chunks=0, per_speaker_context=True))
    assert json.loads((nano / "model" / GENERATION_CONFIG).read_text()) == NANO_GENERATION
    theirs = TransformersConfig.from_pretrained(nano / "model")
    assert (theirs.do_sample, theirs.temperature, theirs.top_k, theirs.top_p) == (True, 0.2, 20, 1.0)


TRANSFORMERS = {"_from_model_config": True, "bos_token_id": 128000, "transformers_version": "5.0"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, GenerationConfig(RELEASE, ChunkOptions(max_words=100), 1024)),
        ({}, RELEASE),
        ({"strict_eos": True}, replace(RELEASE, strict_eos=True)),
        ({"temperature": None, "chunking": None}, RELEASE),
        ({"chunking": {"retries": 0}}, GenerationConfig(RELEASE, ChunkOptions(retries=0))),
        ({"max_new_tokens": 9}, GenerationConfig(RELEASE, max_new_tokens=9)),
        # Fields of the release's own file, and the names of the port in transformers.
        (TRANSFORMERS | {"eos_token_id": [128009, 128012]}, RELEASE),
        ({"temperature": 1, "do_sample": True}, replace(RELEASE, temperature=1.0)),
        ({"temperature": 0.5, "do_sample": False}, replace(RELEASE, temperature=0)),
        ({"ras_win_len": 9, "ras_win_max_num_repeat": 3}, replace(RELEASE, ras_window=9, ras_max_repeats=3)),
    ],
)
def test_defaults_are_those_of_the_release(write, content, expected):
    assert write(content) == (expected if isinstance(expected, GenerationConfig) else GenerationConfig(expected))


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
def test_an_error_names_the_file_and_the_key(write, content, key):
    with pytest.raises(ValueError, match=f"{GENERATION_CONFIG}.*{key}"):
        write(content)


def test_override():
    assert NANO.override(temperature=None, seed=None) == NANO
    changed = {"temperature": 0.0, "top_p": 0.5, "strict_eos": False}
    assert NANO.override(**changed) == replace(NANO, **changed)
    assert NANO.override(top_k=0, ras_window=0) == replace(NANO, top_k=None, ras_window=None)


def test_the_engine_uses_it(nano_engine, monkeypatch):
    engine, sample = nano_engine, smart_voice("Good morning.")
    assert engine.generation.sampling == NANO
    default, nano_codes, release = (engine.generate(sample, s, 40).codes for s in (None, NANO, RELEASE))
    assert default.equal(nano_codes) and not default.equal(release)
    for sampling in (None, [None]):
        assert engine.generate_batch([sample], sampling, 40)[0].codes.equal(default)
    monkeypatch.setattr(engine, "generation", replace(engine.generation, max_new_tokens=12))
    assert engine.generate(sample).usage.audio_steps == 12


def test_a_tuned_checkpoint_keeps_it(nano, tmp_path):
    tuned = tmp_path / "tuned"
    save_tuned(HiggsAudio.from_pretrained(nano / "model"), nano / "model", tuned)
    assert GenerationConfig.from_pretrained(tuned).sampling == NANO


# What is read of a checkpoint, and what is not.
READ = ["config.json", GENERATION_CONFIG, "model.safetensors", "tokenizer.json", "tokenizer_config.json", LEXICON]
FILES = [("model", name, True) for name in READ] + [("codec", name, True) for name in ("config.json", READ[2])]
FILES += [("codec", "preprocessor_config.json", True), ("model", "README.md", False), ("model", ".x.json", False)]


@pytest.mark.parametrize(("part", "name", "is_read"), FILES)
def test_the_fingerprint_covers_what_is_read(nano, tmp_path, part, name, is_read):
    """Another byte at the end of a file, and the file renamed."""
    folder = shutil.copytree(nano / part, tmp_path / "copy")
    before, path = fingerprint(folder), folder / name
    assert before == fingerprint(nano / part), "wherever the folder is"
    content = path.read_bytes() if path.is_file() else b""
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if "model." in name else content + b" ")
    changed = [fingerprint(folder)]
    if name not in ("config.json", "model.safetensors"):
        path.write_bytes(content)
        path.rename(path.with_name(f"{path.stem}-1{path.suffix}"))
        changed.append(fingerprint(folder))
    assert all((print_ != before) == is_read for print_ in changed)


def test_scripts_take_from_it_what_they_leave_out(tmp_path):
    shutil.copy(ROOT / "data" / "voices" / "profiles.json", tmp_path)
    record = {"id": "a", "form": "long_form", "voice": "ada", "text": "One two. Three four. Five."}
    (tmp_path / "s.jsonl").write_text(json.dumps(record | {"chunks": {"retries": 0}}))
    own = ChunkOptions(max_words=2, context_chunks=0)
    (script,) = read_scripts(tmp_path / "s.jsonl", tmp_path, own)
    assert script.request.options == ChunkOptions(max_words=2, context_chunks=0, retries=0)
    assert [chunk.text for chunk in script.request.chunks] == ["One two.", "Three four.", "Five."]
