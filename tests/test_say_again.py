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
def test_a_command_gives_the_same_codes(nano, nano_engine, tmp_path, monkeypatch):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(script) + "\n" for script in SCRIPTS))
    own = GenerationConfig.from_pretrained(nano / "model")
    sampling = own.sampling.override(temperature=0.5)
    tasks = [(script, 3) for script in read_scripts(path, ROOT / "data" / "voices", own.chunks)]
    store = Store(str(tmp_path / "partial"))
    made = {u.name: u for u in speak_all(lambda: nano_engine, tasks, sampling, 400, store, {}, Cluster(None, 1))}
    generated = {"provenance": {"checkpoint": "nano", "set": str(path)}, "sampling": asdict(sampling)}
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
