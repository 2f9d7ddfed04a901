"""The command that the evaluate page shows beside an utterance says it again, code for code."""

import json
import shlex
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT
from typer.testing import CliRunner

from higgs.cli import speak as cli
from higgs.cli.app import app
from higgs.data.scripts import read_scripts
from higgs.evaluate.report.command import commands
from higgs.evaluate.report.gather import Results
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Store
from higgs.serve.generation_config import GenerationConfig
from higgs.serve.many_scripts import speak_all

PAUSES = {"max_words": 4, "context_chunks": 0, "sentence_pause": 0.2}
OWN = {"per_speaker_context": True, "context_chunks": 0}
SCRIPTS = [
    {"id": "plain", "form": "smart_voice", "voice": "ada", "text": "It's late; \"good\" night.", "scene": "A room."},
    {"id": "dash", "form": "smart_voice", "voice": "ben", "text": "- Stop."},
    {"id": "cut", "form": "smart_voice", "voice": "ada", "text": "The bus stops in front of the school.",
     "max_new_tokens": None},
    {"id": "clone", "form": "voice_clone", "voice": "cleo", "text": "Look!", "max_new_tokens": 40},
    {"id": "talk", "form": "dialogue", "voices": {"0": "ada", "1": "ben"}, "lines": [[0, "Hi."], [1, "Bye."]],
     "chunks": OWN},
    {"id": "long", "form": "long_form", "voice": "ben", "text": "The bus is late. We walk home.", "chunks": PAUSES},
    {"id": "described", "form": "dialogue", "speakers": {"0": "feminine", "1": "masculine"},
     "lines": [[0, "Hi."], [1, "Bye."]]},
    {"id": "levels", "form": "long_form", "voice": "ada", "text": "One. Two.", "chunks": {"match_levels": False}},
]  # fmt: skip
WITHOUT = {"described", "levels"}  # `higgs speak` has no option for these


@pytest.mark.slow
@pytest.mark.parametrize(("options", "limit"), [({"temperature": 0.5}, 400), ({"top_k": 0}, 30)])
def test_a_command_gives_the_same_codes(nano, nano_engine, tmp_path, monkeypatch, options, limit):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(script) + "\n" for script in SCRIPTS))
    own = GenerationConfig.from_pretrained(nano / "model")
    sampling = own.sampling.override(**options)
    tasks = [(script, 3) for script in read_scripts(path, ROOT / "data" / "voices", own.chunks)]
    store = Store(str(tmp_path / "partial"))
    made = {u.name: u for u in speak_all(lambda: nano_engine, tasks, sampling, limit, store, {}, Cluster(None, 1))}
    assert made["cut-s3"].record["stop"] == ("length" if limit == 30 else "stop")
    generated = {"provenance": {"checkpoint": "nano", "set": str(path)}, "sampling": asdict(sampling)}
    generated |= {"own_sampling": asdict(own.sampling), "max_new_tokens": limit}
    found = commands(Results(tmp_path, {}, generated, [u.record for u in made.values()], []))
    assert set(made) - set(found) == {f"{name}-s3" for name in WITHOUT}

    responses = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "load_engine", lambda *_: nano_engine)
    monkeypatch.setattr(cli, "write", lambda out, response: responses.append(response))
    for name, command in found.items():
        program, *words = shlex.split(command)
        done = CliRunner().invoke(app, words)
        assert program == "higgs" and done.exit_code == 0, f"{command}\n{done.output}"
        assert torch.equal(responses[-1].codes, made[name].codes), command


def test_a_set_that_is_gone_has_no_commands(tmp_path):
    generated = {"provenance": {"checkpoint": "nano", "set": str(tmp_path / "gone.jsonl")}, "sampling": {}}
    assert commands(Results(tmp_path, {}, generated, [], [])) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"temperature": 0.9, "seed": 5}, "--temperature 0.9 --top-k 20 --top-p 1.0 --seed 3"),
        ({"top_k": None}, "--top-k 0 "),
        ({"ras_window": None}, None), ({"ras_max_repeats": 9}, None), ({"strict_eos": False}, None),
    ],
)  # fmt: skip
def test_settings_without_an_option_have_no_command(tmp_path, change, expected):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(SCRIPTS[0]))
    own = {"temperature": 0.2, "top_k": 20, "top_p": 1.0, "ras_window": 7, "ras_max_repeats": 2, "seed": 0}
    own |= {"parity": False, "strict_eos": True}
    generated = {"provenance": {"checkpoint": "nano", "set": str(path)}, "own_sampling": own, "max_new_tokens": 400}
    rows = [{"name": "plain-s3", "script": "plain", "text": "", "seed": 3}]
    found = commands(Results(tmp_path, {}, generated | {"sampling": own | change}, rows, []))
    if expected is None:
        assert found == {}
    else:
        assert expected in found["plain-s3"] and found["plain-s3"].endswith("--max-new-tokens 400")
