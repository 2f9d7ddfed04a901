"""The explore notebook's studio: what is spoken, judged and written, and what the widgets do when they are used."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT, run

from higgs.evaluate.judges.registry import MetricModels
from higgs.studio.controls import Controls
from higgs.studio.speaking import MAX_TEXT, Studio, grid, ranking
from higgs.workflow.runner import clean_files

TEXT = "Good morning."
SOUND = (ROOT / "data" / "voices" / "cleo.flac").resolve()


class Ear:
    """Hears each new length of a sound as one more word: other draws have other rates."""

    name = short = "ear"

    def transcribe(self, waveform, sample_rate, language="en"):
        return "good morning" + " so" * (len(waveform) // 960 % 4)


class Pitch:
    name = short = "pitch"

    def embed(self, waveform, sample_rate):
        return torch.stack([waveform.std(), waveform.abs().mean(), waveform.abs().max()])


@pytest.fixture
def studio(nano_engine, tmp_path, monkeypatch):
    monkeypatch.delenv("HIGGS_STAGE", raising=False)
    (tmp_path / "data").symlink_to((ROOT / "data").resolve())
    monkeypatch.chdir(tmp_path)
    return Studio(nano_engine, MetricModels(Ear(), Pitch()))


@pytest.fixture
def controls(studio):
    return Controls(studio, "ada", TEXT, [("ada", "Good morning."), ("ben", "How are you?")])


def written() -> list[str]:
    return sorted(str(path) for path in Path("results").rglob("*") if path.is_file())


def test_each_sample_has_a_file_of_its_own_and_its_scores(studio):
    own = studio.engine.generation.sampling
    first, second = studio.speak(TEXT, "ada", [own, own.override(seed=1)])
    (third,) = Studio(studio.engine, MetricModels()).speak("[SPEAKER0] Hi. [SPEAKER1] Yes.", {0: "ada", 1: "ben"})
    names = ["0001-ada-s0", "0002-ada-s1", "0003-ada-ben-s0"]
    assert written() == [f"results/explore/speech/{n}{end}" for n in names for end in (".flac", ".json")]
    assert [sample.path.stem for sample in (first, second, third)] == names
    assert not torch.equal(first.response.codes, second.response.codes)
    record = json.loads(first.path.with_suffix(".json").read_text())
    assert (record["text"], record["seed"], record["status"]) == (TEXT, 0, "ok")
    assert record["wer_percent"] == pytest.approx(first.wer) and record["judges"]["recogniser"] == "ear"
    # A described voice is compared with its example; a dialogue with nobody; without judges there are no rates.
    assert -1 <= record["similarity"] <= 1
    assert third.scores["similarity"] is None is third.wer
    assert min([third, first, second], key=ranking).wer == min(first.wer, second.wer)


def test_only_what_can_be_spoken_is_written(studio):
    own = studio.engine.generation.sampling
    for text, voice in (("", "ada"), ("x" * (MAX_TEXT + 1), "ada"), (TEXT, "nobody"), ("[SPEAKER0] Hi.", "ada")):
        with pytest.raises(ValueError):
            studio.speak(text, voice)
    for values in (([], [1], [1]), ([0.1], range(20), range(20))):
        with pytest.raises(ValueError, match="1 to 100 combinations"):
            grid(own, *values)
    assert [(s.temperature, s.seed) for s in grid(own, [0.1, 0.1, 1.0], [0], [3, 4])] == [
        (0.1, 3), (0.1, 4), (1.0, 3), (1.0, 4),
    ]  # fmt: skip
    assert written() == [] == studio.samples


def test_the_widgets_say_what_is_spoken(controls):
    """Each field, in turn, changes the codes; the list grows, and nothing of it is written again."""
    made = controls.studio.samples
    controls.speak.button.click()
    first = made[0]
    assert (first.text, first.voice, first.settings["seed"]) == (TEXT, "ada", 0)
    changes = {"voice": "ben", "text": "Good evening.", "temperature": 1.0, "top_k": 900, "seed": 5}
    for name, value in changes.items():
        field = getattr(controls, name)
        before, field.value = field.value, value
        controls.speak.button.click()
        if name != "top_k":  # at a low temperature the candidates are the same few
            assert not torch.equal(made[-1].response.codes, first.response.codes), name
        assert (made[-1].settings | {"voice": made[-1].voice, "text": made[-1].text})[name] == value
        field.value = before
    entries = controls.made.children
    assert len(entries) == 6 and "<audio controls preload" in entries[0].value and "WER" in entries[0].value
    controls.number.value = 2
    controls.speak.button.click()
    assert [sample.sampling.seed for sample in made[-2:]] == [0, 1] and controls.made.children[2:] == entries
    assert "best of 2" in controls.speak.status.value and controls.view.children


def test_an_error_is_a_line_and_text_is_no_markup(controls):
    controls.text.value = "<img src=x onerror=alert(1)> $x$"
    controls.voice.options = [*controls.voice.options, "<b>"]
    controls.voice.value = "<b>"
    controls.speak.button.click()
    assert "no voice &#x27;&lt;b&gt;&#x27;" in controls.speak.status.value
    assert not controls.speak.button.disabled and not controls.studio.samples
    controls.voice.value = "ada"
    controls.speak.button.click()
    assert "&lt;img src=x onerror" in controls.made.children[0].value
    assert "<img" not in controls.made.children[0].value
    controls.seeds.value = "1; 2"
    controls.sweep.button.click()
    assert "seeds: expected numbers" in controls.sweep.status.value


def test_a_cell_of_the_map_plays_its_own_sample(controls):
    controls.temperatures.value, controls.top_ks.value, controls.seeds.value = "0.1 1.2", "0", "7, 8"
    controls.sweep.button.click()
    made = controls.studio.samples
    asked_for = [(0.1, 7), (0.1, 8), (1.2, 7), (1.2, 8)]
    assert [(s.sampling.temperature, s.sampling.seed) for s in made] == asked_for
    corner, *_ = titles = [child for child in controls.map.children if not hasattr(child, "click")]
    cells = [child for child in controls.map.children if hasattr(child, "click")]
    assert corner.value == "WER, %" and len(titles) == 1 + 2 + 2
    assert [cell.description for cell in cells] == [f"{sample.wer:.0f}" for sample in made]
    for cell, sample in zip(cells, made, strict=True):
        cell.click()
        assert sample.path.name in controls.player.value and "autoplay" in controls.player.value
    assert len({cell.style.button_color for cell in cells}) == len({min(sample.wer, 50) for sample in made})


def upload(content: bytes) -> tuple[dict, ...]:
    file = {"name": "../x.wav", "type": "audio/wav", "size": len(content), "content": memoryview(content)}
    return (file | {"last_modified": datetime.now(UTC)},)


def test_an_upload_is_heard_checked_and_spoken_with(controls):
    content = SOUND.read_bytes()
    controls.clone.button.click()
    assert "choose a recording" in controls.clone.status.value
    controls.upload.value = upload(content)
    controls.clone.button.click()
    name = controls.voice.value
    assert controls.transcript.value.startswith("good morning") and name.startswith("upload-")
    assert "silence after the speech" in controls.clone.status.value
    controls.transcript.value = "There are quite some words here that nobody has said in this recording."
    controls.clone.button.click()
    assert "heard" in controls.clone.status.value and len(controls.studio.uploads) == 2
    controls.speak.button.click()
    sample = controls.studio.samples[-1]
    assert sample.voice == controls.voice.value != name and sample.scores["similarity"] is not None
    assert all(path.startswith("results/explore/") for path in written())


@pytest.mark.parametrize(
    ("content", "transcript", "message"),
    [
        (b"", "Hi.", "cannot serve"),
        (b"no sound at all", "Hi.", "cannot serve"),
        (SOUND.name.encode() * 10_000_000, "", "at most 50000000"),
        (None, "word " * 400, "words a second"),
    ],
)
def test_what_is_no_reference_is_refused(studio, content, transcript, message):
    with pytest.raises(ValueError, match=message):
        studio.add_recording(SOUND.read_bytes() if content is None else content, transcript)
    assert written() == [] and not studio.uploads


def test_without_a_recogniser_a_transcript_is_asked_for(studio):
    studio = Studio(studio.engine, MetricModels())
    with pytest.raises(ValueError, match="write what is said"):
        studio.add_recording(SOUND.read_bytes())
    voice, findings = studio.add_recording(SOUND.read_bytes(), transcript := SOUND.with_suffix(".txt").read_text())
    assert voice.transcript == transcript.strip() and len(findings) == 1 and "silence after" in findings[0]


def test_the_dialogue_table_has_a_cast(controls):
    controls.add_line.click()
    controls.lines.children[2].children[1].value = "Fine."
    controls.talk.button.click()
    (sample,) = controls.studio.samples
    assert sample.text == "[SPEAKER0] Good morning.\n[SPEAKER1] How are you?\n[SPEAKER0] Fine."
    assert sample.voice == "ada ben" and sample.scores["words"] == 6
    controls.lines.children[0].children[1].value = "[speaker1] Hi."
    controls.talk.button.click()
    assert "one speaker" in controls.talk.status.value and len(controls.studio.samples) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files", "players"),
    [
        ("explore", {"speech/0001-ada-s0.flac", "speech/0001-ada-s0.json"}, 2),
        ("anatomy", {f"anatomy/words.{suffix}" for suffix in ("json", "srt", "vtt")}, 8),
    ],
)
def test_a_notebook_runs_without_a_click_and_is_clean_when_it_is_saved(
    tmp_path, monkeypatch, nano, name, files, players
):
    monkeypatch.delenv("HIGGS_STAGE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for entry in ("dvc.yaml", "params.yaml", "data"):
        (tmp_path / entry).symlink_to((ROOT / entry).resolve())
    path, source = tmp_path / "notebooks" / f"{name}.ipynb", ROOT / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir()
    shutil.copy(source, path)
    run("jupyter", "execute", "--inplace", path.name, cwd=path.parent)
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    data = [output.get("data", {}) for cell in cells for output in cell.outputs]
    pages = "".join(entry.get("text/html", "") for entry in data)
    assert pages.count("<audio") == players and sum("image/png" in entry for entry in data) >= 3
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    explored = tmp_path / "results" / "explore"
    assert {str(file.relative_to(explored)) for file in explored.rglob("*.*")} == files
    if name == "explore":
        record = json.loads((explored / "speech" / "0001-ada-s0.json").read_text())
        assert f"WER {record['wer_percent']:.1f} %" in pages and f"DNSMOS {record['mos_overall']:.2f}" in pages
        assert record["wer_percent"] < 30 and record["similarity"] > 0.4 and 1 < record["mos_overall"] < 5
        assert any("application/vnd.jupyter.widget-view+json" in entry for entry in data)
    assert clean_files([path]) == [path]
    assert path.read_bytes() == source.read_bytes()
