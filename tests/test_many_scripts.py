"""Many scripts: batched equal to one by one, saved one by one, and a public set from its list to a table."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from spoken import clips

from higgs.arithmetic import can_pin
from higgs.audio import save_audio
from higgs.config import SamplingConfig
from higgs.data.scripts import read_scripts, script_file
from higgs.evaluate import test_sets as sets
from higgs.evaluate.judges.registry import make_panel
from higgs.evaluate.report.gather import GENERATED, OF_THE_SET, gather, read_results
from higgs.evaluate.statistics.summary import summarise
from higgs.evaluate.utterances import Listener
from higgs.serve import many_scripts
from higgs.serve.engine import Engine
from higgs.serve.many_scripts import batches, choose_tasks, read_utterance, speak_all, work_folder
from higgs.workflow.outputs import write_json, write_table

SAMPLING = SamplingConfig(temperature=0.4, top_k=20, top_p=1.0)


@pytest.fixture
def scripts(tmp_path):
    records = [
        {"id": "a", "form": "smart_voice", "voice": "ada", "text": "It is late."},
        {"id": "b", "form": "smart_voice", "voice": "ben", "text": "Turn left at the light."},
        {"id": "c", "form": "long_form", "voice": "ada", "text": "One day. Two days.",
         "chunks": {"max_words": 2, "context_chunks": 0}, "max_new_tokens": 20},
    ]  # fmt: skip
    path = tmp_path / "scripts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_scripts(path, "data/voices")


def speak(engine, scripts, folder):
    tasks = choose_tasks(scripts, [0, 1], None)
    return {utterance.name: utterance for utterance in speak_all(lambda: engine, tasks, SAMPLING, 40, folder, 1)}


def test_a_killed_run_resumes_to_the_same_result(nano_engine, scripts, tmp_path, monkeypatch):
    whole = speak(nano_engine, scripts, tmp_path / "whole")
    assert sorted(whole) == ["a-s0", "a-s1", "b-s0", "b-s1", "c-s0", "c-s1"]
    assert all(not utterance.resumed and len(utterance.waveform) for utterance in whole.values())
    assert [chunk["audio_frames"] <= 20 - 8 for chunk in whole["c-s0"].chunks] == [True, True], "its own limit"
    assert not whole["a-s0"].chunks

    monkeypatch.setattr(many_scripts, "BATCH", 1)  # one by one is equal to a batch
    tasks = choose_tasks(scripts, [0, 1], None)
    first = next(speak_all(lambda: nano_engine, tasks, SAMPLING, 40, tmp_path / "killed", 1))
    (tmp_path / "killed" / "b-s0.safetensors").write_bytes(b"half a file")
    rest = speak(nano_engine, scripts, tmp_path / "killed")
    assert [name for name, utterance in rest.items() if utterance.resumed] == [first.name]
    for name, utterance in rest.items():
        assert torch.equal(utterance.codes, whole[name].codes) and utterance.record == whole[name].record
        assert torch.allclose(utterance.waveform, whole[name].waveform, atol=1e-5)
        assert utterance.chunks == whole[name].chunks


def test_a_request_that_fails_is_an_empty_utterance(nano_engine, scripts, tmp_path, monkeypatch):
    for name in ("generate", "generate_batch"):
        generate = getattr(Engine, name)

        def fail(self, samples, *rest, generate=generate, **options):
            if "Turn left" in str(samples):
                raise ValueError("too long")
            return generate(self, samples, *rest, **options)

        monkeypatch.setattr(Engine, name, fail)
    utterances = speak(nano_engine, scripts[:2], tmp_path)
    failed = utterances["b-s0"]
    assert (failed.record["stop"], failed.record["note"]) == ("error", "too long")
    assert not len(failed.waveform) and len(utterances["a-s0"].waveform)
    assert read_utterance(tmp_path / "b-s0.safetensors").record == failed.record


def test_other_settings_have_another_folder(tmp_path):
    folders = {work_folder(tmp_path, {"temperature": t, "model": m}) for t in (0.4, 0.5) for m in "ab"}
    assert len(folders) == 4 and work_folder("a", {"x": 1}) == work_folder("a", {"x": 1})


def test_repeated_scripts_do_not_depend_on_the_order(scripts):
    seeds = [4, 5, 6]
    tasks, reversed_ = (sorted((s.id, n) for s, n in choose_tasks(some, seeds, 1)) for some in (scripts, scripts[::-1]))
    assert tasks == reversed_ and len(tasks) == 5
    (repeated,) = {name for name, seed in tasks if seed == 6}
    assert [seed for name, seed in tasks if name != repeated] == [4, 4]
    sizes = [len(batch) for _, batch in batches(choose_tasks(scripts, seeds, None), 40)]
    assert sizes == [6, 1, 1, 1], "a request with chunks is a batch of its own"


WORKERS = """
import sys
from functools import partial
from higgs.arithmetic import set_arithmetic
if __name__ == "__main__":
    set_arithmetic(True)
    import torch
    from higgs.config import SamplingConfig
    from higgs.data.scripts import read_scripts
    from higgs.serve import many_scripts
    from higgs.serve.engine import Engine

    nano, scripts, folder = sys.argv[1:]
    load = partial(Engine.from_pretrained, f"{nano}/model", f"{nano}/codec", device="cpu")
    tasks = many_scripts.choose_tasks(read_scripts(scripts, "data/voices"), [0, 1], None)
    sampling, runs = SamplingConfig(temperature=0.4, top_k=20, top_p=1.0), []
    for number, (workers, many_scripts.BATCH) in enumerate([(1, 16), (2, 16), (1, 1)]):
        run = many_scripts.speak_all(load, tasks, sampling, 40, f"{folder}/{number}", workers)
        runs.append({utterance.name: utterance for utterance in run})
    whole, *others = runs
    for other in others:
        assert sorted(other) == sorted(whole) and len(whole) == 6
        for name, utterance in whole.items():
            assert torch.equal(utterance.codes, other[name].codes) and utterance.record == other[name].record
            assert torch.equal(utterance.waveform, other[name].waveform), name
    print("equal")
"""


@pytest.mark.skipif(not can_pin(), reason="this processor has no AVX2: nothing is pinned")
def test_neither_workers_nor_batch_mates_change_a_bit(scripts, nano, tmp_path):
    """Codes, records and waveforms in one process, in two, and spoken one by one."""
    (tmp_path / "workers.py").write_text(WORKERS)
    command = [sys.executable, tmp_path / "workers.py", nano, tmp_path / "scripts.jsonl", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stdout == "equal\n"


@pytest.mark.parametrize(("name", "count"), [("default", 120), ("small", 40), ("quick", 7)])
def test_shipped_sets_can_be_spoken(name, count):
    scripts = read_scripts(script_file(name), "data/voices")
    assert len(scripts) == count and len({script.text for script in scripts}) == count
    single = [script for script in scripts if script.form in ("smart_voice", "voice_clone")]
    assert all(script.reference and script.reference.is_file() for script in single)


def test_an_unknown_set_is_answered_with_those_there_are():
    with pytest.raises(FileNotFoundError, match="'defualt'; there are: default, long, quick, small"):
        script_file("defualt")


def test_a_public_set_from_its_list_to_a_table(nano_engine, tmp_path):
    """Two recordings laid out as SeedTTS-Eval: spoken by the default checkpoint, judged beside the recordings."""
    folder = tmp_path / "look-alike" / "en"
    (folder / "wavs").mkdir(parents=True)
    (folder / "prompt-wavs").mkdir()
    chosen, prompt = sorted(clips("en"), key=lambda c: len(c.waveform))[:2], clips("en")[3]
    save_audio(folder / "prompt-wavs" / "prompt.wav", prompt.waveform[:72_000], 24_000)
    lines = []
    for item in chosen:
        save_audio(folder / "wavs" / f"{item.id}.wav", item.waveform, 24_000)
        lines.append(f"{item.id}|{prompt.text}|prompt-wavs/prompt.wav|{item.text}")
    (folder / "meta.lst").write_text("\n".join(lines) + "\n")
    assert sets.main(["seed-tts-eval", str(folder)]) == 0
    scripts = read_scripts(folder / "meta.jsonl", "data/voices")
    tasks = choose_tasks(scripts, [0], None)
    write_results(tmp_path / "results", list(speak_all(lambda: nano_engine, tasks, SAMPLING, 60, tmp_path / "work", 1)))
    items = gather(read_results(tmp_path / "results"), ["en"])
    items = [item for item in items if item.group in (GENERATED, OF_THE_SET)]
    assert [item.group for item in items] == [OF_THE_SET] * 2 + [GENERATED] * 2
    panel = make_panel("moonshine-tiny-en-float32", "ge2e")
    rows = list(Listener(panel).judge_all(items))
    assert all(row["status"] == "ok" and row["similarity"] is not None for row in rows)
    people, ours = summarise(rows, 100, 0)
    assert people["seedtts_wer_percent"] < 30 and ours["n"] == 2


def write_results(folder, utterances):
    """As the stages write them."""
    write_table(folder / "generate/utterances.csv", [utterance.record for utterance in utterances])
    for utterance in utterances:
        path = folder / "generate/audio" / f"{utterance.name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_audio(path, utterance.waveform, 24_000)
    write_json(folder / "generate/summary.json", {})
    write_json(folder / "tokenize/summary.json", {"recordings": "data/recordings/manifest.jsonl"})
