"""The folder `training/`: its pipeline, the held-out evaluation, the model card and the report."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from ruamel.yaml import YAML

from higgs.audio import save_audio
from higgs.data.recordings import read_recordings
from higgs.data.scripts import read_scripts
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.utterances import Evaluator
from higgs.model.higgs_audio import HiggsAudio
from higgs.serve.generation_config import GenerationConfig
from higgs.train.checkpointing import log, read_log, save_state
from higgs.workflow.outputs import write_json
from higgs.workflow.runner import clean_files
from training.corpus import corpus
from training.corpus.voices import IN_HOUSE, SAMPLE_RATE, Speaker
from training.evaluation import evaluate, held_out, table

HERE = ROOT / "training"
STAGES = YAML(typ="safe").load((HERE / "dvc.yaml").read_text())["stages"]
PARAMS = YAML(typ="safe").load((HERE / "params.yaml").read_text())


def filled(text: str) -> str:
    """With the parameters in it; a KeyError for one that there is not."""
    return re.sub(r"\$\{([\w.]+)\}", lambda m: str(reduce(getitem, m[1].split("."), PARAMS)), text)


def script_of(stage: str) -> Path | None:
    words = shlex.split(STAGES[stage]["cmd"].removeprefix("cd .. && "))
    if words[0] != "python":
        return None
    return ROOT / (words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1])


def test_the_pipeline_is_a_project_of_its_own():
    """The repository's `dvc repro` does not see it, and it finds its own inputs."""
    assert (HERE / ".dvc/config").is_file()
    listed = run("dvc", "stage", "list", "--name-only", cwd=ROOT).split()
    assert not set(listed) & STAGES.keys()
    assert set(run("dvc", "--cd", "training", "stage", "list", "--name-only", cwd=ROOT).split()) == (set(STAGES))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_its_inputs_and_asks_for_nothing_unknown(stage):
    """Sources exist, other inputs are outputs of other stages, options and parameters are known."""
    outs = {filled(next(iter(out))) for other in STAGES.values() for out in other["outs"]}
    for dep in STAGES[stage].get("deps", ()):
        assert filled(dep) in outs or (HERE / dep).exists(), dep
    words = shlex.split(filled(STAGES[stage]["cmd"]).removeprefix("cd .. && "))
    source = (HERE / "nano/job.py").read_text()
    if script := script_of(stage):
        source += script.read_text()
        folders = set(re.findall(r"from training\.(\w+)\.", script.read_text()))
        assert {"../higgs", *folders} <= set(STAGES[stage]["deps"])
    for option in (word for word in words if word.startswith("--") and script):
        assert re.search(rf'"{option}"|\b{option[2:]}\b(=|":)', source), option
    for out in STAGES[stage]["outs"]:
        ((name, settings),) = out.items()
        assert name.startswith("out/") and settings["cache"] is False


def needs(stage: str) -> set[str]:
    """The stages whose outputs are its inputs."""
    deps = {filled(dep) for dep in STAGES[stage].get("deps", ())}
    return {other for other, it in STAGES.items() if deps & {filled(next(iter(out))) for out in it["outs"]}}


def test_stages_that_run_side_by_side_do_not_wait_for_each_other():
    """By the Makefile: when a stage starts, all that it needs is made, by its own line or before both began."""
    made = {"quantizer", "lexicon", "corpus", "kokoro"}
    assert made == set.union({"quantizer"}, *(needs(stage) for stage in made))
    groups = re.findall(r"printf '%s\\n' (.*?) \| .*SIDE_BY_SIDE", (ROOT / "Makefile").read_text())
    assert groups
    for group in groups:
        lines = [line.split() for line in shlex.split(group)]
        for line in lines:
            for i, stage in enumerate(line):
                assert needs(stage) <= made.union(line[:i]), stage
        made.update(*lines)
    assert made == set(STAGES) - {"assemble", "evaluation", "report"}


@pytest.mark.parametrize("fails", [False, True])
def test_two_lines_of_stages_run_at_once(tmp_path, fails):
    """Each starts before the other ends; where one fails, the other is waited for, and make stops."""
    project = tmp_path / "training"
    project.mkdir()
    meet = "echo > {0}.up; for i in $(seq 600); do [ -e {1}.up ] && break; sleep 0.1; done; [ -e {1}.up ]"
    stages = {
        "a": {"cmd": meet.format("a", "b") + " && sleep 1 && echo > a", "outs": ["a"]},
        "b": {"cmd": meet.format("b", "a") + (" && false" if fails else " && echo > b"), "outs": ["b"]},
        "c": {"cmd": "cp b c", "deps": ["b"], "outs": ["c"]},
    }
    (project / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (side_by_side,) = re.findall("^SIDE_BY_SIDE.*", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (tmp_path / "Makefile").write_text(f"{side_by_side}\ngo:\n\tprintf '%s\\n' a 'b c' | $(SIDE_BY_SIDE)\n")
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", "--subdir", cwd=project)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["make", "go"], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert (done.returncode != 0) == fails, done.stderr
    assert (project / "a").exists() and (project / "c").exists() != fails


@pytest.mark.parametrize("change", ["nothing", "a byte", "a file"])
def test_the_end_says_whether_the_checkpoint_is_the_committed_one(tmp_path, change):
    """`make train`'s last command, by the Makefile; the model card is no part of what is trained."""
    (same,) = re.findall(r"^SAME(?:.*\\\n)*.*", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (tmp_path / "Makefile").write_text(f"{same}\ngo:\n\t@$(SAME)\n")
    committed, trained = tmp_path / "data/checkpoints/nano", tmp_path / "training/out/nano"
    for folder in (committed, trained):
        (folder / "model").mkdir(parents=True)
        (folder / "model/weights").write_bytes(b"weights")
    (committed / "README.md").touch()
    if change == "a byte":
        (trained / "model/weights").write_bytes(b"Weights")
    elif change == "a file":
        (trained / "lexicon").touch()
    done = subprocess.run(["make", "go"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("byte for byte" in done.stdout) == (change == "nothing")
    assert ("is not data" in done.stdout) == (change != "nothing")


def test_a_log_is_read_by_step(tmp_path):
    """A run that was killed tells some steps again."""
    for step, loss in ((100, 3.0), (200, 2.0), (200, 1.5), (300, 1.0)):
        log(tmp_path / "a.jsonl", step=step, loss=loss)
    rows = [(row["step"], row["loss"]) for row in read_log(tmp_path / "a.jsonl")]
    assert rows == [(100, 3.0), (200, 1.5), (300, 1.0)]


def tone(tts, text, speaker, speed, seed):
    """In place of the source TTS: a tone by the speaker's pitch, as long as the text."""
    wave = np.sin(np.arange(1200 * len(text)) * speaker.pitch / 20)
    return (wave * 9000).astype(np.int16)


class Words:
    """A recogniser that is right about loud clips."""

    name = short = "a judge"
    languages = frozenset({"en"})

    def transcribe(self, waveform, sample_rate, language="en"):
        return "the cat sat" if waveform.abs().max() > 0.2 else ""


class Pitch:
    """A speaker encoder: zero crossings a second."""

    name = short = "an encoder"

    def embed(self, waveform, sample_rate):
        rate = (waveform[1:] * waveform[:-1] < 0).float().mean()
        return torch.stack([(40 * rate).cos(), (40 * rate).sin()])


@pytest.fixture(scope="module")
def evaluated(nano, tmp_path_factory):
    """A folder with the evaluation of *nano* by two judges, and a function that runs it again."""
    folder = tmp_path_factory.mktemp("evaluation")
    sizes = replace(held_out.Sizes.quick(), sentences=2, seeds=2, dialogues=1, recordings=1, timed=1)
    generation = replace(GenerationConfig.from_pretrained(nano / "model"), max_new_tokens=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(held_out, "speak", tone)
        patch.setattr(held_out, "REFERENCE_TEXT", "The sun.")
        patch.setattr(
            evaluate, "models_of", lambda _, words_only: MetricModels(Words(), None if words_only else Pitch())
        )
        held_out.write_held_out(folder / "held-out", sizes, None)

        def run_again():
            return evaluate.evaluate(nano, folder, sizes, generation, ["a", "b"], 1)

        write_json(folder / "evaluation.json", run_again())
        yield folder, run_again


@pytest.fixture
def content(evaluated):
    return json.loads((evaluated[0] / "evaluation.json").read_text())


def test_every_condition_is_evaluated(content):
    summary = {row["group"]: row for row in content["summary"]}
    kinds = ["ada", "ben", "kit", "unseen", "human"]
    assert set(summary) == {"ada", "ben", "kit", "clone", "dialogue", "long"} | {
        f"{kind}, {what}" for kind in kinds for what in ("source audio", "codec round trip")
    }
    assert summary["ada"]["n"] == 4 and summary["ben"]["n"] == 2 and summary["clone"]["n"] == 10
    assert summary["ada"]["cap_hits"] > 0  # twelve frames are too few
    accuracy = content["attribution"]
    assert accuracy["in-house"]["of"] == 6 and accuracy["clone"]["of"] == 10 and accuracy["clone, human"]["of"] == 2
    assert accuracy["unseen, source audio"]["percent"] == 100 and accuracy["dialogue, turn"]["of"] == 4
    assert list(content["codec"]) == kinds and content["long"]["chunks"] == 4


def test_an_evaluation_that_was_stopped_is_resumed(evaluated, content, monkeypatch):
    """Nothing is generated or judged twice, and the numbers are the same."""

    def fail(*_):
        raise AssertionError("was done before")

    monkeypatch.setattr("higgs.serve.many_scripts._speak", fail)
    monkeypatch.setattr(Words, "transcribe", fail)
    write_json(evaluated[0] / "again.json", evaluated[1]())
    again = json.loads((evaluated[0] / "again.json").read_text())
    assert again | {"size_and_speed": 0} == content | {"size_and_speed": 0}


def test_no_speaker_of_the_corpus_is_near_an_unseen_one(monkeypatch):
    drawn: list[Speaker] = []
    utterances, shards = PARAMS["corpus"]["utterances"], PARAMS["corpus"]["shards"]
    monkeypatch.setattr(corpus, "speak", lambda tts, text, speaker, *_: drawn.append(speaker))
    for seed in range(shards):
        list(corpus.by_hibari(corpus.Shard("", seed, ("",) * (utterances // shards)), None))
    assert len(drawn) == utterances and set(IN_HOUSE) < set(drawn) and len(set(drawn)) > 1000
    pairs = torch.tensor(sorted({(speaker.pitch, speaker.formant) for speaker in drawn})).log()
    for unseen in held_out.UNSEEN:
        apart = (pairs - torch.tensor((unseen.pitch, unseen.formant)).log()).abs().amax(1)
        assert apart.min() > 0.05, unseen


def test_the_held_out_set_is_in_the_formats_of_data(evaluated):
    folder = evaluated[0]
    scripts = read_scripts(folder / "held-out/scripts.jsonl", folder / "held-out/voices")
    assert len({script.voice for script in scripts if script.form == "voice_clone"}) == 10
    assert all(script.request.options.retries == 0 for script in scripts if script.request.chunks)
    recordings = read_recordings(folder / "held-out/recordings/manifest.jsonl")
    assert [recording.id for recording in recordings][-3:] == ["unseen-00", "unseen-01", "human-en-agent-alreadyon"]
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["generate"]
    assert evaluate.MAX_NEW_TOKENS == params["max_new_tokens"]


def test_a_clip_is_attributed_to_the_nearest_candidate(tmp_path):
    candidates = []
    for speaker in IN_HOUSE:
        candidates.append((speaker.name, tmp_path / f"{speaker.name}.flac"))
        save_audio(candidates[-1][1], torch.from_numpy(tone(None, "Hello.", speaker, 1, 0)) / 32768, SAMPLE_RATE)
    evaluator = Evaluator(MetricModels(speaker=Pitch()))
    clips = [path for _, path in candidates]
    for name, path, nearest in (("ben", clips[1], "ben"), ("ada", clips[2], "kit"), ("ada", None, None)):
        (row,) = evaluate.Attribution("x", name, path, tuple(candidates)).judge(evaluator)
        assert row["nearest"] == nearest and row["right"] == (nearest == name)
    assert evaluate.share([True, True, False])["percent"] == pytest.approx(200 / 3)
    assert evaluate.share([]) == {"of": 0}


def test_the_card_holds_the_evaluation_of_its_checkpoint_and_of_no_other(nano, content, tmp_path, monkeypatch, capsys):
    path, card = tmp_path / "evaluation.json", tmp_path / "card.md"
    card.write_text((HERE / "model-card.md").read_text())
    path.write_text(json.dumps(content))
    options = {"--evaluation": path, "--card": card, "--checkpoint": nano}
    monkeypatch.setattr("sys.argv", ["table", *(str(word) for pair in options.items() for word in pair)])
    table.main()
    filled_card = card.read_text()
    assert "| ada, codec round trip | 2 |" in filled_card and "WER %, a judge" in filled_card
    assert "unseen, source audio | 2 of 2: 100 % [34, 100]" in filled_card and "of 4 chunks cut off" in filled_card
    table.main()
    assert card.read_text() == filled_card
    path.write_text(json.dumps(content | {"about": content["about"] | {"model": "other"}}))
    with pytest.raises(SystemExit):
        table.main()
    assert "another model" in capsys.readouterr().err and card.read_text() == filled_card
    with pytest.raises(ValueError, match=table.START):
        table.fill("nothing", "table")


def test_the_notebook_of_the_report_is_clean():
    assert clean_files([HERE / "report.ipynb"], check=True) == []


@pytest.mark.slow
def test_the_report_is_one_page_of_what_there_is(evaluated, nano, tmp_path, monkeypatch):
    """Logs made by hand, an evaluation, and weights of the way: the curves, the tables and the players are there."""
    jobs = {"quantizer": "l1 ctc", "decoder": "loss", "encoder": "relative mel_l1"}
    jobs |= {"finished_decoder": "loss energy discriminators adversarial matching"}
    jobs |= dict.fromkeys(("model", "cloning"), "cb0 cb1 cb7 characters attention")
    for job, names in jobs.items():
        for step in (100, 200):
            row = {"step": step, "seconds": step, **dict.fromkeys(names.split(), 100 / step)}
            log(tmp_path / f"{job}.jsonl", **row, validation={"ada": 100 / step})
    (tmp_path / "evaluation").symlink_to(evaluated[0])
    (tmp_path / "nano").symlink_to(nano)
    (tmp_path / "lexicon.json").symlink_to(nano / "model/lexicon.json")
    (tmp_path / "snapshots").mkdir()
    save_state(tmp_path / "snapshots/model-02000.pt", model=HiggsAudio.from_pretrained(nano / "model").state_dict())
    monkeypatch.syspath_prepend(str(HERE))
    page = importlib.import_module("report").write_report(tmp_path, 1).read_text()
    assert page.count("data:image/png;base64") == 9 and page.count("<audio") > 20
    assert "<td>kit, codec round trip</td>" in page and "2000</td>" in page and "clone-new-0.55-0.90" in page
    assert (tmp_path / "report.ipynb").is_file() and not (tmp_path / "report.failed.ipynb").exists()
