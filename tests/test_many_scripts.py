"""Many requests: batched equal to one by one, kept as they come, and a public set's path from list to table."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from spoken import clips

from higgs import resumable
from higgs.arithmetic import can_pin
from higgs.audio import save_audio
from higgs.config import SamplingConfig
from higgs.data.scripts import read_scripts, script_file
from higgs.evaluate import test_sets as sets
from higgs.evaluate.judges.registry import load_metric_models
from higgs.evaluate.report.gather import GENERATED, OF_THE_SET, gather, read_results
from higgs.evaluate.statistics.summary import summarise
from higgs.evaluate.utterances import Evaluator
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Store
from higgs.serve import many_scripts as many_scripts
from higgs.serve.engine import Engine
from higgs.serve.many_scripts import batches, choose_tasks, speak_all

SAMPLING = SamplingConfig(temperature=0.4, top_k=20, top_p=1.0)


@pytest.fixture(scope="module")
def engine(nano):
    return Engine.from_pretrained(nano / "model", nano / "codec", device="cpu")


@pytest.fixture
def scripts(tmp_path):
    rows = [
        {"id": "a", "form": "smart_voice", "voice": "ada", "text": "It is late."},
        {"id": "b", "form": "smart_voice", "voice": "ben", "text": "Turn left at the light."},
        {"id": "c", "form": "long_form", "voice": "ada", "text": "One day. Two days.",
         "chunks": {"max_words": 2, "context_chunks": 0}},
    ]  # fmt: skip
    path = tmp_path / "scripts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_scripts(path, "data/voices")


def speak(engine, scripts, folder, limit=40):
    requests = [(script, seed) for script in scripts for seed in (0, 1)]
    made = speak_all(lambda: engine, requests, SAMPLING, limit, Store(str(folder)), {}, Cluster(None, 1))
    return {utterance.name: utterance for utterance in made}


def test_a_killed_run_goes_on_and_ends_with_the_same(engine, scripts, tmp_path, monkeypatch):
    whole = speak(engine, scripts, tmp_path / "whole")
    assert sorted(whole) == ["a-s0", "a-s1", "b-s0", "b-s1", "c-s0", "c-s1"]
    assert all(not utterance.resumed and len(utterance.waveform) for utterance in whole.values())
    assert len(whole["c-s0"].chunks) == 2 and not whole["a-s0"].chunks

    monkeypatch.setattr(many_scripts, "BATCH", 1)  # one by one gives what a batch gives
    speak_batch, spoken = many_scripts._speak, []

    def killed(engine, tasks, *rest):
        if len(spoken) == 1:
            raise KeyboardInterrupt
        spoken.append(tasks[0][0].record(tasks[0][1])["name"])
        return speak_batch(engine, tasks, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(many_scripts, "_speak", killed)
        speak(engine, scripts, tmp_path / "cut")
    rest = speak(engine, scripts, tmp_path / "cut")
    assert [name for name, utterance in rest.items() if utterance.resumed] == spoken
    for name, utterance in rest.items():
        assert torch.equal(utterance.codes, whole[name].codes) and utterance.record == whole[name].record
        assert torch.allclose(utterance.waveform, whole[name].waveform, atol=1e-5)
        assert utterance.chunks == whole[name].chunks


def test_a_request_that_cannot_be_spoken_is_an_empty_take(engine, scripts, tmp_path, monkeypatch):
    sequence = Engine.sequence

    def refuse(self, sample, *rest, **more):
        if "Turn left" in str(sample):
            raise ValueError("too long")
        return sequence(self, sample, *rest, **more)

    monkeypatch.setattr(Engine, "sequence", refuse)
    made = speak(engine, scripts[:2], tmp_path)
    assert (made["b-s0"].record["stop"], made["b-s0"].record["note"]) == ("error", "too long")
    assert not len(made["b-s0"].waveform) and len(made["a-s0"].waveform)
    again = speak(engine, scripts[:2], tmp_path)
    assert again["b-s0"].record == made["b-s0"].record and all(utterance.resumed for utterance in again.values())


def more_code(package):
    (package / "more.py").write_text("")


def other_c(package):
    (package / "more.c").write_text("")


def no_compiler(package):
    return {"shutil.which": lambda name: None}


def moved_code(package):
    (package / "serve.py").rename(package / "data" / "serve.py")


def another_library(package):
    return {"distributions": lambda: [SimpleNamespace(name="numpy", version="2")]}


def another_processor(package):
    return {"torch.backends.cpu.get_cpu_capability": lambda: "another"}


def an_accelerator(package):
    return {"torch.accelerator.current_accelerator": lambda **_: torch.device("cuda")}


CHANGES = [more_code, other_c, no_compiler, moved_code, another_library, another_processor, an_accelerator]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_other_code_and_another_machine_give_other_names(tmp_path, monkeypatch, change):
    """What a killed run left is not taken for what the new code would make."""
    (tmp_path / "data").mkdir()
    (tmp_path / "serve.py").write_text("x = 1")
    monkeypatch.setattr(resumable, "__file__", str(tmp_path / "resumable.py"))

    def key():
        resumable.code_hash.cache_clear()
        return resumable.code_hash()

    before = key()
    assert key() == before
    for name, value in (change(tmp_path) or {}).items():
        monkeypatch.setattr(f"higgs.resumable.{name}", value)
    after = key()
    resumable.code_hash.cache_clear()
    assert after != before


def test_the_device_and_the_modules_that_count_are_told(tmp_path, monkeypatch):
    for folder in ("codec", "studio"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text("x = 1")
    monkeypatch.setattr(resumable, "__file__", str(tmp_path / "resumable.py"))

    def names():
        resumable.code_hash.cache_clear()
        return [resumable.code_hash(device, "codec/") for device in ("cpu", "cuda:H100")]

    try:
        before = names()
        (tmp_path / "studio/x.py").write_text("x = 2")
        assert names() == before and before[0] != before[1]
        for place in ("codec/x.py", "top.py"):
            (tmp_path / place).write_text("x = 3")
            assert not {*names()} & {*before}
    finally:
        resumable.code_hash.cache_clear()


@pytest.mark.parametrize("change", ["temperature", "limit", "weights", "text", "seed", "voice"])
def test_other_settings_give_other_names(scripts, tmp_path, monkeypatch, change):
    names, clone = [], {"id": "d", "form": "voice_clone", "voice": "cleo", "text": "It is late."}
    (tmp_path / "clone.jsonl").write_text(json.dumps(clone))
    scripts = [*scripts, *read_scripts(tmp_path / "clone.jsonl", "data/voices")]

    def run(make, parts, store, *_):
        names.append({part.name for part in parts})
        return iter(())

    def ask(sampling=SAMPLING, limit=40, weights="a", scripts=scripts, seed=0):
        requests = [(script, seed) for script in scripts]
        assert not list(speak_all(None, requests, sampling, limit, Store(str(tmp_path)), {"model": weights}))

    monkeypatch.setattr(many_scripts, "run", run)
    ask()
    ask()
    if change == "voice":
        monkeypatch.setattr(many_scripts, "digests", lambda paths: {path: "another" for path in paths})
    other = {
        "temperature": {"sampling": replace(SAMPLING, temperature=0.5)}, "limit": {"limit": 41},
        "weights": {"weights": "b"}, "text": {"scripts": [*scripts[:3], replace(scripts[3], text="Other.")]},
        "seed": {"seed": 1}, "voice": {},
    }[change]  # fmt: skip
    ask(**other)
    assert names[0] == names[1] and len(names[0]) == 2 and names[0] != names[2]


def test_some_texts_have_all_seeds_whatever_their_order(scripts):
    seeds = [4, 5, 6]
    once, both = (choose_tasks(some, seeds, 1) for some in (scripts, scripts[::-1]))
    assert len(once) == 5 and sorted((s.id, n) for s, n in once) == sorted((s.id, n) for s, n in both)
    (often,) = {s.id for s, n in once if n == 6}
    assert [n for s, n in once if s.id != often] == [4, 4]
    assert len(choose_tasks(scripts, seeds, None)) == 9
    sizes = [len(batch) for _, batch in batches(choose_tasks(scripts, seeds, None), 40)]
    assert sizes == [6, 1, 1, 1], "what is spoken in chunks is by itself"


SHARED = """
import sys
from functools import partial
from higgs.arithmetic import set_arithmetic
if __name__ == "__main__":
    set_arithmetic(True)
    import torch
    from higgs.config import SamplingConfig
    from higgs.data.scripts import read_scripts
    from higgs.serve import many_scripts as many_scripts
    from higgs.serve.engine import Engine
    from higgs.jobs.cluster import Cluster
    from higgs.jobs.parts import Store

    nano, scripts, folder = sys.argv[1:]
    load = partial(Engine.from_pretrained, f"{nano}/model", f"{nano}/codec", device="cpu")
    requests = many_scripts.choose_tasks(read_scripts(scripts, "data/voices"), [0, 1], None)
    sampling, found = SamplingConfig(temperature=0.4, top_k=20, top_p=1.0), []
    for number, (workers, many_scripts.BATCH) in enumerate([(1, 16), (2, 16), (1, 1)]):
        store = Store(f"{folder}/{number}")
        made = many_scripts.speak_all(load, requests, sampling, 40, store, {}, Cluster(None, workers))
        found.append({utterance.name: utterance for utterance in made})
    whole, *others = found
    for other in others:
        assert sorted(other) == sorted(whole) and len(whole) == 6
        for name, utterance in whole.items():
            assert torch.equal(utterance.codes, other[name].codes) and utterance.record == other[name].record
            assert torch.equal(utterance.waveform, other[name].waveform), name
    print("equal")
"""


@pytest.mark.skipif(not can_pin(), reason="this processor has no AVX2: nothing is pinned")
def test_neither_workers_nor_neighbours_change_a_bit(scripts, nano, tmp_path):
    """Codes, rows and waveforms in one process, in two, and spoken one by one."""
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    command = [sys.executable, str(script), str(nano), str(tmp_path / "scripts.jsonl")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([*command, str(tmp_path)], cwd=ROOT, env=environment, text=True) == "equal\n"


def test_sets_by_name():
    assert script_file("default").name == "default.jsonl"
    with pytest.raises(FileNotFoundError, match=r"no set 'defualt'; there are: default, long, quick, small"):
        script_file("defualt")


@pytest.mark.parametrize(("name", "count"), [("default", 120), ("small", 40), ("quick", 7)])
def test_shipped_sets_can_be_spoken(name, count):
    found = read_scripts(script_file(name), "data/voices")
    assert len(found) == count and len({script.text for script in found}) == count
    single = [s for s in found if s.form in ("smart_voice", "voice_clone")]
    assert all(s.reference and s.reference.is_file() for s in single)


def test_a_public_set_from_its_list_to_a_table(engine, tmp_path):
    """Two recordings as SeedTTS-Eval lays out its own: spoken by the default checkpoint, judged beside the people."""
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
    requests = choose_tasks(scripts, [0], None)
    store = Store(str(tmp_path / "work"))
    made = list(speak_all(lambda: engine, requests, SAMPLING, 60, store, {}, Cluster(None, 1)))
    write_results(tmp_path / "results", made)
    items = gather(read_results(tmp_path / "results"), ["en"])
    items = [item for item in items if item.condition in (GENERATED, OF_THE_SET)]
    assert [item.condition for item in items] == [OF_THE_SET] * 2 + [GENERATED] * 2
    metric_models = load_metric_models("moonshine-tiny-en-float32", "ge2e")
    rows = list(map(Evaluator(metric_models).judge, items))
    assert all(row["status"] == "ok" and row["similarity"] is not None for row in rows)
    people, ours = summarise(rows, 100, 0)
    assert people["seedtts_wer_percent"] < 30 and ours["n"] == 2


def write_results(folder, made):
    """As the stages leave them."""
    from higgs.workflow.outputs import write_json
    from higgs.workflow.tables import write_rows

    write_rows(folder / "generate/utterances.parquet", [utterance.record for utterance in made])
    for utterance in made:
        path = folder / "generate/audio" / f"{utterance.name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_audio(path, utterance.waveform, 24_000)
    write_json(folder / "generate/summary.json", {})
    write_json(folder / "tokenize/summary.json", {"recordings": "data/recordings/manifest.jsonl"})
