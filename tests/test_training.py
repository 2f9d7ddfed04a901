"""The folder `training/`: its pipeline, the examination, and what becomes of its numbers."""

import ast
import importlib
import json
import re
import shlex
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run
from ruamel.yaml import YAML

from higgs.audio import save_audio
from higgs.checkpoint.resolve import fingerprint
from higgs.serve.generation import GenerationConfig
from higgs.train.checkpointing import log, read_log

HERE = ROOT / "training"
STAGES = YAML(typ="safe").load((HERE / "dvc.yaml").read_text())["stages"]
PARAMS = YAML(typ="safe").load((HERE / "params.yaml").read_text())


def filled(text: str) -> str:
    """With the parameters in it; a KeyError for one that there is not."""

    def value(match) -> str:
        found = PARAMS
        for key in match[1].split("."):
            found = found[key]
        return str(found)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def script_of(stage: str) -> Path | None:
    words = shlex.split(STAGES[stage]["cmd"].removeprefix("cd .. && "))
    if words[0] != "python":
        return None
    return ROOT / (words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1])


def imports_of(path: Path) -> set[Path]:
    """The files of the package and of this folder that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {ROOT / (name.replace(".", "/") + ".py") for name in names}
    return {path for path in found if path.is_file() and not path.is_relative_to(ROOT / "tests")}


def reached(path: Path) -> set[Path]:
    """What a script imports, directly or not, and itself."""
    seen, todo = set(), {path}
    while todo:
        seen.add(one := todo.pop())
        todo |= imports_of(one) - seen
    return seen


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


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
    for option in (word for word in words if word.startswith("--") and script):
        assert f'"{option}"' in source, option
    for out in STAGES[stage]["outs"]:
        ((name, settings),) = out.items()
        assert name.startswith("out/") and settings["cache"] is False


@pytest.mark.parametrize("stage", [stage for stage in STAGES if script_of(stage)])
def test_a_stage_lists_the_code_it_imports_and_no_more(stage):
    deps = [HERE / dep for dep in STAGES[stage]["deps"] if not dep.startswith("out/")]
    listed = {dep.resolve() for dep in deps if dep.suffix == ".py" or dep.is_dir()}
    files = reached(script_of(stage))
    for path in files:
        assert any(path == dep or dep in path.parents for dep in listed), f"{path} is not listed"
    if stage == "report":  # its notebook imports more
        return
    for dep in listed:
        assert any(path == dep or dep in path.parents for path in files), f"{dep} is not used"


def test_a_log_is_read_by_step(tmp_path):
    """A run that was killed tells some steps again."""
    for step, loss in ((100, 3.0), (200, 2.0), (200, 1.5), (300, 1.0)):
        log(tmp_path / "a.jsonl", step=step, loss=loss)
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path / "a.jsonl")] == [
        (100, 3.0), (200, 1.5), (300, 1.0),
    ]  # fmt: skip


def test_voices_that_are_the_same_are_not_told_apart():
    exam = importlib.import_module("exam")
    x, y = torch.eye(2)
    apart = exam.told_apart([("a", x), ("a", x), ("b", y), ("b", y)])
    assert apart["percent"] == 100 and apart["of"] == 4
    mixed = exam.told_apart([("a", x), ("a", y), ("b", y), ("b", x)])
    assert mixed["hits"] == 0  # each clip's fellow sounds like the other voice
    assert exam.told_apart([("a", x), ("b", y)]) == {"of": 0}  # nothing is left of a voice
    assert exam.nearest(y, torch.eye(2)) == 1 and exam.nearest(None, torch.eye(2)) is None


def test_unseen_voices_are_unseen():
    """No pair of pitch and formants of the own voices, and ten references that differ from each other."""
    exam = importlib.import_module("exam")
    pairs = {(s.pitch, s.formant) for s in (*exam.OWN, *exam.UNSEEN)}
    assert len(pairs) == len(exam.OWN) + len(exam.UNSEEN) and len(exam.UNSEEN) + len(exam.HUMANS) == 10


def test_the_exam_speaks_as_the_checkpoint_asks(nano):
    exam = importlib.import_module("exam")
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["generate"]
    own = GenerationConfig.from_pretrained(nano / "model")
    fake = Fake(nano, Path("out"))
    assert exam.Exam.sampling(fake, 5) == replace(own.sampling, seed=5)
    assert exam.MAX_NEW_TOKENS == params["max_new_tokens"]


def test_error_rates_know_the_sentences():
    exam = importlib.import_module("exam")

    class Judge:
        def transcribe(self, waveform, sample_rate):
            return "the cat ran" if waveform[0] else "the cat sat"

    clips = [torch.zeros(9), torch.ones(9), torch.zeros(9)]
    row = exam.error_rates(Judge(), ["The cat sat."] * 3, clips)
    assert row["wer_percent"] == pytest.approx(100 / 9) and "wer_interval" not in row
    assert row["whole_sentences_percent"] == pytest.approx(200 / 3)


class Fake:
    """An examination whose parts count how often they are done."""

    def __init__(self, checkpoint, out, seeds=1):
        exam = importlib.import_module("exam")
        self.checkpoint, self.out, self.judges, self.encoder = (
            checkpoint,
            out,
            {},
            types.SimpleNamespace(),
        )
        self.encoder.name = "an encoder"
        self.generation = GenerationConfig.from_pretrained(checkpoint / "model")
        self.sizes, self.done = exam.Sizes(seeds=seeds), []

    def words(self):
        self.done.append("words")
        return {"x": 1.23456}

    def codec(self):
        self.done.append("codec")
        raise KeyboardInterrupt


def test_a_stopped_exam_goes_on_and_another_starts_anew(nano, tmp_path):
    examine = importlib.import_module("exam").examine
    first = Fake(nano, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        examine(first, ["words", "codec"])
    assert json.loads((tmp_path / "exam.json").read_text())["words"]["x"] == 1.235
    again = Fake(nano, tmp_path)
    assert examine(again, ["words"])["words"]["x"] == 1.235 and again.done == []
    other = Fake(nano, tmp_path, seeds=2)
    examine(other, ["words"])
    assert other.done == ["words"]


def content(checkpoint):
    share = {"hits": 9, "of": 10, "percent": 90.0, "interval": [59.6, 98.2]}
    wer = {"A judge": {"wer_percent": 12.34, "wer_interval": [8.0, 16.0]}}
    own = {
        "generations": 10, "cap_hits": 1, "length_within_percent": 95.0,
        "length_ratio_median": 1.01, "words": wer, "teacher": wer,
    }  # fmt: skip
    return {
        "about": {
            "model": fingerprint(checkpoint / "model"), "codec": fingerprint(checkpoint / "codec"),
            "sizes": {"sentences": 10, "seeds": 1}, "judges": ["A judge"],
            "setting": GenerationConfig.from_pretrained(checkpoint / "model").to_json(),
        },
        "words": {"ada": own, "ben": own, "kit": own, "voices": share, "minutes": 1.0},
        "codec": {"ada": {"original": wer, "codec": wer}, "minutes": 1.0},
    }  # fmt: skip


def test_the_card_holds_the_exam_of_its_checkpoint_and_of_no_other(nano, tmp_path, monkeypatch, capsys):
    table = importlib.import_module("exam_table")
    exam, card = tmp_path / "exam.json", tmp_path / "card.md"
    card.write_text((HERE / "model-card.md").read_text())
    exam.write_text(json.dumps(content(nano)))
    arguments = [
        "exam_table.py",
        "--exam",
        str(exam),
        "--card",
        str(card),
        "--checkpoint",
        str(nano),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    table.main()
    filled = card.read_text()
    assert "12.3 % (8.0 to 16.0) |" in filled and "9 of 10: 90 % (60 to 98)" in filled
    assert "cloning" not in filled.partition(table.START)[2]  # was not examined
    table.main()
    assert card.read_text() == filled
    exam.write_text(json.dumps(content(nano) | {"about": content(nano)["about"] | {"model": "other"}}))
    with pytest.raises(SystemExit):
        table.main()
    assert "examined another model" in capsys.readouterr().err and card.read_text() == filled
    with pytest.raises(ValueError, match="has no <!-- exam -->"):
        table.fill("nothing", "table")


def test_the_notebook_of_the_report_is_clean():
    from higgs.workflow.runner import clean_files

    assert clean_files([HERE / "report.ipynb"], check=True) == []


@pytest.mark.slow
def test_the_report_is_one_page_of_what_there_is(nano, tmp_path):
    """Logs and an examination made by hand: the curves, the table and the player are there, nothing from outside."""
    for job, names in {
        "quantizer": ("l1", "ctc"),
        "decoder": ("loss",),
        "encoder": ("relative", "mel_l1"),
        "model": ("cb0", "cb1", "cb7", "characters", "attention"),
    }.items():
        for step in (100, 200):
            row = {"step": step, "seconds": step, **dict.fromkeys(names, 100 / step)}
            log(tmp_path / f"{job}.jsonl", **row, held_out=[1.0] * 8)
    clips = tmp_path / "exam/clips"
    clips.mkdir(parents=True)
    (tmp_path / "exam/exam.json").write_text(json.dumps(content(nano)))
    save_audio(clips / "ada-0.flac", torch.zeros(2400), 24_000)
    (clips / "ada-0.txt").write_text("What the clip says.\n")
    page = importlib.import_module("report").write_report(tmp_path, 1).read_text()
    assert page.count("data:image/png;base64") == 6 and page.count("<audio") == 1
    assert "What the clip says." in page and "12.3 % (8.0 to 16.0)" in page
    assert (tmp_path / "report.ipynb").is_file() and not (tmp_path / "report.failed.ipynb").exists()
