"""`make release-check` from end to end: a stub of the hub with the default checkpoint's files, a small public set."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import NANO, ROOT
from hub_server import Hub, is_large, point_at, sha256
from test_protocols import seed_tts  # noqa: F401

from benchmarks import precision
from higgs.serve import many_scripts
from higgs.workflow.page import check_self_contained
from release_check import published, steps
from release_check.__main__ import identity, main, parse, run

MODEL, CODEC, COMMIT = "some/higgs", "some/codec", "1" * 40
JUDGE = "moonshine-tiny-en-float32"


@pytest.fixture
def hub(nano, tmp_path, monkeypatch):
    server = Hub()
    for name, part in ((MODEL, "model"), (CODEC, "codec")):
        server.add(name, COMMIT, {path.name: path.read_bytes() for path in (nano / part).iterdir()})
    point_at(server, tmp_path, monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 20)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def check(tmp_path, monkeypatch):
    """-> a run with these words beside the usual ones, its exit status and page; in a folder of its own."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        usual = ["--device", "cpu", "--dtype", "float32", "--sentences", "2", "--utterances", "2", "--judge", JUDGE]
        status = main([*usual, *words])
        return status, check_self_contained(Path("reports/release.html").read_text())

    return run


def states(page: str) -> dict[str, str]:
    """The table of steps."""
    table = page[page.index('id="steps"') :].partition("</table>")[0]
    return dict(re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", table))


def test_from_the_hub_to_the_page_through_every_stop(hub, check, seed_tts, monkeypatch, tmp_path):  # noqa: F811
    words = ["--checkpoint", f"{MODEL}@{COMMIT}", "--codec", f"{CODEC}@{COMMIT}", "--seed-tts", str(seed_tts)]
    hub.cut = [1 << 20, *[0] * 9]
    status, page = check(*words)
    found = states(page)
    assert status == 1 and found["Download"].endswith("Run it again: it goes on")
    assert found["Hashes"] == "not run: it needs download" and "What differs: download: failed" in page

    # Stopped while the set is spoken, after the first step that takes long.
    hub.cut, speak = [], many_scripts._speak
    spoken: list[str] = []

    def stop_at_the_set(engine, tasks, *arguments):
        names = [script.record(seed)["name"] for script, seed in tasks]
        if names[0].startswith(("first", "second", "third")) and "stopped" not in spoken:
            spoken.append("stopped")
            raise KeyboardInterrupt
        spoken.extend(names)
        return speak(engine, tasks, *arguments)

    monkeypatch.setattr(many_scripts, "_speak", stop_at_the_set)
    with pytest.raises(KeyboardInterrupt):
        check(*words)
    assert len(spoken) == 3 and spoken[-1] == "stopped"
    assert len(json.loads(next(Path("results/release/steps").glob("*/sentences.json")).read_text())["rows"]) == 2

    status, page = check(*words)
    found = states(page)
    assert status == 0 and len(spoken) == 5, "two utterances of the set, none of the sentences"
    assert found["Sentences"] == found["Codes of the codec beside transformers"] == "done, by an earlier run"
    assert re.fullmatch(r"done in \d+ s", found["SeedTTS-Eval"])
    assert "Nothing that was checked differs." in page and "384 of 384" in page
    large = [
        content for files in hub.repositories.values() for content in files[COMMIT].items() if is_large(content[0])
    ]
    assert len(large) == 2 and all(sha256(content) in page for _, content in large)
    assert page.count("<td>the same</td>") == 2 and page.count("<audio controls") == 4
    assert re.search(r"differs\. Sentences: 2, with a word error rate of \d+\.\d % .* SeedTTS-Eval: 2, with", page)
    assert "This is another checkpoint than the release" in page
    assert "does not compare: judged by Moonshine tiny-en, float32, theirs is Whisper large-v3" in page

    hub.log.clear()
    status, page = check(*words)
    assert status == 0 and len(spoken) == 5 and not [path for _, path, _ in hub.log if path.startswith("/cdn/")]
    assert states(page)["SeedTTS-Eval"] == "done, by an earlier run"

    # A file in the cache that is no longer what was fetched.
    blob = next(path for path in (tmp_path / "cache").rglob("model.safetensors") if "higgs" in str(path)).resolve()
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")  # of the last weight, which is no NaN
    status, page = check(*words)
    found = states(page)
    assert status == 1 and "model.safetensors: its sha256 is" in found["Hashes"] and "delete" in found["Hashes"]
    assert found["Sentences"] == "not run: it needs hashes"


def test_a_step_that_fails_takes_only_those_along_that_need_it(check, monkeypatch):
    """A folder, a judge that is not there, a port that does not load, no public set."""

    def fails(*arguments, **options):
        raise steps.StepFailed("transformers does not load <b>it</b>")

    with monkeypatch.context() as broken:
        broken.setattr(steps, "_from_transformers", fails)
        status, page = check("--checkpoint", str(NANO), "--judge", "whisper-large-v3:/no/such/folder")
    found = states(page)
    assert status == 1 and found["Sentences"].startswith("done")
    assert "transformers does not load &lt;b&gt;it&lt;/b&gt;" in page and "<b>it" not in page
    assert "whisper-large-v3:/no/such/folder: " in page and found["SeedTTS-Eval"].startswith("not asked for")
    status, page = check("--checkpoint", str(NANO), "--judge", "whisper-large-v3:/no/such/folder")
    assert status == 0 and states(page)["Sentences"] == "done, by an earlier run"
    assert "1,096 of 1,096" in page


def fetched(*words: str) -> steps.Check:
    """A check after its download."""
    made, _ = parse(["--device", "cpu", *words])
    made.results["download"] = {part: str(NANO / part) for part in ("model", "codec")}
    return made


def test_results_are_kept_under_all_that_they_depend_on(check, seed_tts, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "data").unlink()
    (tmp_path / "data").mkdir()
    for name in ("scripts", "recordings", "checkpoints"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    shutil.copytree(ROOT / "data/voices", tmp_path / "data/voices")
    words = ["--checkpoint", "s3://bucket/prefix", "--seed-tts", str(seed_tts)]
    found = [identity(fetched(*words))]
    assert found[0] == identity(fetched(*words))
    for path in (next(Path("data/voices").glob("*.flac")), next(seed_tts.rglob("*.wav"))):
        path.write_bytes(path.read_bytes() + b"\0")
        found.append(identity(fetched(*words)))
    other = fetched(*words)
    other.results["download"]["model"] = shutil.copytree(NANO / "model", tmp_path / "other")
    (tmp_path / "other/lexicon.json").write_text("{}")
    found.append(identity(other))
    monkeypatch.setattr("release_check.__main__.choose_device", lambda name: {"auto": "cuda"}.get(name, name))
    found.append(identity(replace(fetched(*words), checkpoint=replace(other.checkpoint, device="auto"))))
    assert len({json.dumps(one, default=str) for one in found}) == len(found)


def test_spoken_parts_are_named_by_the_device_that_auto_is(check, monkeypatch):
    seen: list[dict] = []
    monkeypatch.setattr(steps, "choose_device", {"auto": "cuda"}.get)
    monkeypatch.setattr(steps, "speak_all", lambda *arguments: seen.append(arguments[5]) or ())
    monkeypatch.setattr(steps, "_judged", lambda *_: {})
    made = fetched("--checkpoint", str(NANO))
    made.results["hashes"] = {"fingerprints": {}}
    steps._spoken(replace(made, checkpoint=replace(made.checkpoint, device="auto")), [], "sentences")
    assert seen[0]["device"] == "cuda"


def test_a_result_that_cannot_be_written_is_a_failed_step(check, monkeypatch):
    done = {"download": lambda _: {part: str(NANO / part) for part in ("model", "codec")}, "last": lambda _: {"ok": 1}}
    done |= {"codec_codes": lambda _: {"largest_difference_of_samples": float("nan")}}
    monkeypatch.setattr("release_check.__main__.STEPS_IN_ORDER", [(name, done[name], ()) for name in done])
    made, _ = parse(["--checkpoint", str(NANO), "--device", "cpu"])
    found, results = run(made, lambda *_: None)
    assert found["codec_codes"].startswith("failed: ValueError: ") and "nan" in found["codec_codes"]
    assert found["last"].startswith("done in") and set(results) == {"download", "last"}
    assert run(made, lambda *_: None)[0]["last"] == "done, by an earlier run"


def test_utterances_of_the_precision_benchmark_are_those_of_its_settings(check, tmp_path, monkeypatch):
    there = precision.folder_of("int8", tmp_path, 2)
    there.mkdir()
    (there / "utterances.jsonl").write_text("")
    assert precision.speak("int8", tmp_path, 2) == there
    monkeypatch.setattr("higgs.Engine.from_pretrained", lambda *_, **__: pytest.fail("speaks"))
    for dtype, texts in (("int8", 3), ("int8", None), ("int4", 2)):
        with pytest.raises(pytest.fail.Exception, match="speaks"):
            precision.speak(dtype, tmp_path, texts)
    monkeypatch.setattr(precision, "fingerprint", lambda _: "another checkpoint")
    assert precision.folder_of("int8", tmp_path, 2) != there


def summary_of(value: float, low: float, high: float, group: str = "generated") -> dict:
    row = {"group": group, "n": 50}
    for name in ("seedtts_wer_percent", "similarity"):
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return row


@pytest.mark.parametrize(
    ("judge", "values", "figure", "verdict"),
    [
        ("Whisper large-v3", (2.0, 1.0, 4.0), 2.44, "not told apart"),
        ("Whisper large-v3", (2.0, 1.0, 2.4), 2.44, "differs: lower here"),
        ("Whisper large-v3", (5.0, 3.2, 9.0), 3.09, "differs: higher here"),
        ("Moonshine", (2.0, 1.0, 4.0), 2.44, "does not compare: judged by Moonshine, theirs is Whisper large-v3"),
        (None, (2.0, 1.0, 4.0), 2.44, "does not compare: judged by None, theirs is Whisper large-v3"),
        ("WavLM-large SV", (0.65, 0.60, 0.70), 67.7, "not told apart"),
        ("WavLM-large SV", (0.65, 0.60, 0.66), 67.7, "differs: lower here"),
        ("Whisper large-v3", (None, None, None), 2.44, "not measured"),
    ],
)
def test_published_figures_are_told_apart_by_the_interval_and_the_judge(judge, values, figure, verdict):
    summary = [summary_of(*values)]
    found = {"language": "en", "judges": {"recogniser": judge, "speaker": judge}, "summary": summary}
    rows = published.compare(found)
    assert verdict in [row["difference"] for row in rows if row["published"] == figure]
    assert {row["difference"] for row in rows if row["figure"].endswith("people")} == {"not measured"}
    assert {row["difference"] for row in published.compare(None)} == {"not measured"}


def test_every_published_figure_has_a_source():
    assert all(re.search(r"README of|#\d+|arXiv:", entry.source) for entry in published.FIGURES)
    assert {entry.language for entry in published.FIGURES} == {"en", "zh"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "no such thing"], "neither 'nano'"),
        (["--checkpoint", "some/higgs"], "must pin a full commit"),
        (["--seed-tts", "no/folder"], "there is no folder no/folder"),
        (["--sentences", "0"], "at least 1"),
        (["--out", "/elsewhere"], "a folder below this one"),
        (["--device", "cudda"], "--device: cudda is not there"),
    ],
)
def test_wrong_words_are_named_before_anything_is_fetched(check, capsys, words, message):
    with pytest.raises(SystemExit):
        check(*words)
    assert message in " ".join(capsys.readouterr().err.split())
