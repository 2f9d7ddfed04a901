"""The command line: what it makes, and what it says to input that is wrong.

Run in this process, as `main` would: a new one for each row would take longer than the rows.
"""

import dataclasses
import importlib
import inspect
import json
import os
import resource
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import higgs
from higgs import Engine, SamplingConfig
from higgs.audio import load_audio, save_audio
from higgs.cli.app import main
from higgs.cli.finetune import finetune
from higgs.data.chatml import smart_voice
from higgs.train.finetune import TuneConfig

WORDS = "one two three four five six seven eight"


@pytest.fixture
def run(monkeypatch, capsys):
    """-> (exit status, stdout, stderr) of `higgs ...`, from the root of the repository."""
    monkeypatch.chdir(ROOT)

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["higgs", *map(str, arguments)])
        code = main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def voices(tmp_path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    (folder / "profiles.json").write_text('{"ada": "feminine", "ben": "masculine"}')
    return folder


@pytest.fixture
def clip(tmp_path) -> Path:
    noise = 0.1 * torch.randn(96_000, generator=torch.Generator().manual_seed(0))
    save_audio(tmp_path / "clip.wav", noise, 24_000)
    return tmp_path / "clip.wav"


def test_a_long_text_is_spoken_in_chunks(nano, run, tmp_path):
    out = tmp_path / "a.wav"
    arguments = [
        "--max-new-tokens",
        12,
        "--retries",
        0,
        "--max-words",
        2,
        "--paragraph-pause",
        1,
        "--out",
        out,
    ]
    (tmp_path / "a.txt").write_text("It is late.\n\nI go.")
    code, printed, _ = run("speak", "--file", tmp_path / "a.txt", *arguments)
    rows = printed.splitlines()
    assert code == 0 and len(rows) == 4
    assert [row.split("  ")[-1] for row in rows[:3]] == ["It is", "late.", "I go."]
    assert "length" in rows[0] and rows[-1].endswith("stopped by length")
    waveform, rate = load_audio(out)
    ends = [float(row.split(" to ")[1].split()[0]) for row in rows[:3]]
    starts = [float(row.split(" to ")[0]) for row in rows[:3]]
    assert starts[2] == pytest.approx(ends[1] + 1, abs=0.02) and starts[1] == ends[0]
    assert ends[2] == pytest.approx(len(waveform) / rate, abs=0.01)
    _, printed, _ = run("speak", "It is late. I go.", *arguments, "--no-chunking")
    assert len(printed.splitlines()) == 1


def test_a_dialogue_is_spoken_by_its_speakers(nano, run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Engine, "generate", lambda self, sample, *a, **k: asked.append(sample) or 1 / 0)
    text = "[SPEAKER0] Good morning. [SPEAKER1] 5 [laugh]"
    common = [
        "speak",
        text,
        "--speaker",
        "0=ada",
        "--speaker",
        "1=ben",
        "--out",
        tmp_path / "a.wav",
    ]
    for extra, said in (
        (["--normalize"], ["Good morning."]),
        (["--no-chunking"], [text]),
        (
            ["--no-chunking", "--normalize"],
            ["[SPEAKER0] Good morning. [SPEAKER1] five ", "<SE>[Laughter]</SE>"],
        ),
        (["--no-per-speaker-context", "--max-words", "3"], ["[SPEAKER0] Good morning."]),
    ):
        with pytest.raises(ZeroDivisionError):
            run(*common, *extra)
        assert [part.text for part in asked[-1].messages[-1].parts] == said
    assert asked[-2].messages[-1].parts[1].allow_special


# What is wrong, and key words of what is said of it. Status 2: options that are wrong by themselves.
WRONG = [
    (["", "--voice", "ada"], 1, "no text to speak"),
    ([" \n "], 1, "no text to speak"),
    ([], 2, "--file"),
    (["Hi.", "--file", "x.txt"], 2, "--file"),
    (["--file", "nowhere.txt"], 1, "nowhere.txt"),
    (["--file", "{nul}"], 1, "U+0000"),
    (["--file", "{latin}"], 1, "UTF-8"),
    (["Hi.", "--voice", "nobody"], 1, "there are: ada, ben, cleo, kit, operator"),
    (["Hi.", "--voices", "{broken}", "--voice", "eve"], 1, "the transcript"),
    (["Hi.", "--voices", "nowhere"], 1, "nowhere does not exist"),
    (["Hi.", "--reference", "a.wav"], 2, "--reference-text"),
    (["Hi.", "--reference", "a.wav", "--reference-text", " "], 2, "--reference-text"),
    (["Hi.", "--reference", "a.wav", "--reference-text", "x"], 1, "a.wav does not exist"),
    (["[SPEAKER0] Hi."], 1, "--speaker 0=ada --speaker 1=ben; voices are: ada, ben, cleo, kit, operator"),
    (["Hi.", "--speaker", "0=ada"], 1, "--speaker"),
    (["[SPEAKER0] Hi.", "--speaker", "ada"], 2, "NUMBER=VOICE"),
    (["[SPEAKER0] Hi.", "--speaker", "0=zoe"], 1, "'zoe'"),
    (["[SPEAKER0] Hi.", "--speaker", "0=ada", "--speaker", "0=ben"], 2, "twice"),
    (["[SPEAKER0] ", "--speaker", "0=ada"], 1, "no text to speak"),
    (["[SPEAKER7] Hi.", "--speaker", "0=ada", "--speaker", "1=ben"], 1, "no speaker 7; there are: 0, 1"),
    (["[SPEAKER7] Hi.", "--speaker", "0=ada", "--no-per-speaker-context"], 1, "[7]"),
    (["[SPEAKER x] Hi."], 1, "'[SPEAKER x]'"),
    (["Oh [SPEAKER0] Hi.", "--speaker", "0=ada"], 1, "'Oh'"),
    (["Hi.", "--max-words", "0"], 2, "--max-words"),
    (["Hi.", "--paragraph-pause", "-1"], 2, "--paragraph-pause"),
    (["Hi.", "--top-k", "many"], 2, "--top-k"),
    (["Hi.", "--temprature", "1"], 2, "--temperature"),
    (["Hi.", "--top-p", "0"], 1, "top_p"),
    (["()", "--normalize"], 1, "nothing is left to speak"),
    (["Hi.", "--checkpoint", "somewhere"], 1, "neither 'nano'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "words"), WRONG)
def test_what_is_wrong_is_said(nano, run, tmp_path, arguments, status, words):
    (tmp_path / "nul").write_bytes(b"hello\0there")
    (tmp_path / "latin").write_bytes("héllo".encode("latin-1"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "eve.flac").write_bytes(b"")
    places = {name: tmp_path / name for name in ("nul", "latin", "broken")}
    arguments = [a.format(**places) for a in arguments]
    code, printed, said = run("speak", *arguments, "--out", tmp_path / "x.wav")
    *usage, last = said.splitlines()
    assert (code, printed) == (status, "") and last.startswith("Error: ") and words in last
    assert bool(usage) == (status == 2)
    assert not (tmp_path / "x.wav").exists()


def test_a_place_that_cannot_be_written_is_named_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path / "folder.wav", "folder.wav is a folder"),
        (tmp_path / "file" / "a.wav", "a.wav cannot be written: File exists"),
        ("/proc/a.wav", "a.wav cannot be written"),
        (tmp_path / "a.mp3", "audio is written as .wav"),
    ):
        code, _, said = run("speak", "Hi.", "--out", out)
        assert code == 1 and message in said and len(said.splitlines()) == 1


def test_a_silent_chunk_does_not_take_the_others_along(nano, run, tmp_path, monkeypatch):
    real, calls = Engine.generate, []

    def silent_at_last(self, *arguments, **options):
        response = real(self, *arguments, **options)
        calls.append(response)
        if len(calls) > 1:
            response.usage = type(response.usage)(10, 0, 0, 0)
        return response

    monkeypatch.setattr(Engine, "generate", silent_at_last)
    code, _, said = run(
        "speak", "It is late. I go.", "--max-words", 3, "--retries", 0,
        "--max-new-tokens", 12, "--out", tmp_path / "a.wav",
    )  # fmt: skip
    assert code == 1 and "chunk 2 of 2, 'I go.': no audio" in said
    assert f"the speech before it is in {tmp_path / 'a.before.wav'}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.before.wav"]
    waveform, rate = load_audio(tmp_path / "a.before.wav")
    assert len(waveform) == 960 * calls[0].usage.audio_frames and rate == 24_000


def test_a_stopped_command_says_so(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("higgs.data.voices.list_voices", interrupted)
    assert run("voices") == (130, "", "stopped\n")


# Odd text that is spoken all the same: as text, whatever it looks like.
ODD = ["Hi 🎉👩‍👩‍👧!", "שלום עולם", "<|eot_id|><|AUDIO_OUT|>", "<SE>[Laughter]</SE>", "x" * 10_000]


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_spoken(nano, run, tmp_path, monkeypatch, text):
    """Through the real tokenizer and the real prompt, up to the model."""
    batches = []

    def prepared(self, sample, *_, **__):
        batches.append((self.prepare(sample), self.ids))
        raise ValueError("stop here")

    monkeypatch.setattr(Engine, "generate", prepared)
    _, _, said = run("speak", text, "--out", tmp_path / "x.wav")
    assert "stop here" in said
    (batch, ids), *_ = batches
    made = batch.input_ids[0].tolist()
    assert made.count(ids.end_of_turn) == 2 and ids.audio_out not in made
    assert len(made) < 700, "10,000 characters come in chunks"


def test_odd_text_through_the_engine(nano):
    engine = Engine.from_pretrained(nano / "model", nano / "codec", device="cpu")
    sampling = SamplingConfig(temperature=0.4, top_k=20, seed=0)
    for text in ("Hi 🎉 שלום <|eot_id|>", "word " * 400):
        response = engine.generate(smart_voice(text), sampling, 10)
        assert response.usage.audio_frames == 2 and response.waveform.isfinite().all()
    assert engine.prepare(smart_voice("x" * 10_000)).input_ids.shape[1] > 10_000
    for text, message in (("", "no text to speak"), (" ", "no text"), ("a\0", r"U\+0000")):
        with pytest.raises(ValueError, match=message):
            engine.generate(smart_voice(text), sampling, 10)


def test_the_help_says_what_there_is(run):
    for arguments, words in (
        ([], ["speak", "serve", "inspect", "compare", "finetune", "voices", "--version", "--install-completion"]),
        (["speak"], ["--normalize", "--no-chunking", "the checkpoint's", "--speaker NUMBER=VOICE"]),
        (["voices"], ["list", "add", "play", "check"]),
        (["voices", "add"], ["--text", "--force", "3 to 30 s"]),
    ):  # fmt: skip
        code, printed, _ = run(*arguments, "--help")
        said = " ".join(printed.split())
        assert code == 0 and all(word in said for word in words)


def test_help_comes_at_once_and_torch_is_not_imported_for_it():
    code = "import sys, higgs.cli.app; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert modules.returncode == 0 and not {"torch", "numpy"} & set(modules.stdout.split())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "higgs", "--help"], cwd=ROOT, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_the_version_and_the_public_names(run):
    assert run("--version") == (0, f"{version('higgs')}\n", "")
    assert set(dir(higgs)) == set(higgs.__all__)


def test_the_console_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["higgs"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_the_shell_completes(monkeypatch):
    environment = os.environ | {
        "_HIGGS_COMPLETE": "complete_bash", "COMP_WORDS": "higgs sp", "COMP_CWORD": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "higgs"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["speak"]


def test_text_comes_from_standard_input_and_audio_goes_to_standard_output(nano, tmp_path):
    words = [
        sys.executable,
        "-m",
        "higgs",
        "speak",
        "-",
        "--max-new-tokens",
        "20",
        "--json",
        "--out",
    ]
    piped, filed = (
        subprocess.run([*words, out], cwd=ROOT, capture_output=True, input=b"Good morning.")
        for out in ("-", str(tmp_path / "a.wav"))
    )
    assert piped.returncode == filed.returncode == 0, piped.stderr + filed.stderr
    assert piped.stdout == (tmp_path / "a.wav").read_bytes()
    (told,) = (json.loads(line) for line in filed.stdout.splitlines())
    waveform, rate = load_audio(tmp_path / "a.wav")
    assert told.items() >= {"out": str(tmp_path / "a.wav"), "sample_rate": rate, "chunks": []}.items()
    assert told["seconds"] == len(waveform) / rate
    assert json.loads(piped.stderr) == told | {"out": "-"}


def test_the_defaults_of_finetune_are_those_of_the_code():
    options = inspect.signature(finetune).parameters
    for field in dataclasses.fields(TuneConfig):
        if field.name in options and field.name != "checkpoint":
            assert options[field.name].default == field.default, field.name


def test_voices_are_added_and_listed(run, voices, clip):
    for before in (["voices", "--voices", voices], ["voices", "list", "--voices", voices]):
        code, printed, _ = run(*before)
        assert code == 0 and printed.splitlines()[0].split() == ["ada", "described:", "feminine"]
    add = ["voices", "add", "eve", clip, "--text", WORDS, "--voices", voices]
    code, printed, _ = run(*add)
    assert code == 0 and "eve.flac" in printed and "voices check eve" in printed
    code, _, said = run(*add)
    assert code == 1 and "--force" in said
    assert run(*add, "--force")[0] == 0
    _, printed, _ = run("voices", "--voices", voices)
    assert f"eve          recording: {voices / 'eve.flac'} (4.0 s)" in printed
    for name, file, message in (
        ("../eve", clip, "no name for a voice"), ("zoe", "nowhere.wav", "does not exist"),
    ):  # fmt: skip
        code, _, said = run("voices", "add", name, file, "--text", WORDS, "--voices", voices)
        assert code == 1 and message in said


def test_one_broken_recording_does_not_hide_the_others(run, voices, clip):
    run("voices", "add", "eve", clip, "--text", WORDS, "--voices", voices)
    (voices / "bad.wav").write_bytes(b"no sound")
    (voices / "bad.txt").write_text(WORDS)
    code, printed, _ = run("voices", "--voices", voices)
    assert code == 0 and [line.split()[0] for line in printed.splitlines()] == [
        "ada", "bad", "ben", "eve"
    ]  # fmt: skip
    assert f"{voices / 'bad.wav'} (cannot be read: " in printed


def test_voices_are_checked(run, voices, clip, monkeypatch):
    run("voices", "add", "eve", clip, "--text", WORDS, "--voices", voices)

    class Judge:
        def transcribe(self, waveform, sample_rate):
            assert (len(waveform), sample_rate) == (96_000, 24_000)
            return heard

    monkeypatch.setattr("higgs.evaluate.judges.registry.make_judge", lambda *_: Judge())
    code, _, said = run("voices", "check", "ada", "--voices", voices)
    assert code == 1 and "ada is a description: nothing to check" in said
    heard = WORDS
    assert run("voices", "check", "--voices", voices)[:2] == (0, "eve: as it should be\n")
    heard = "something else"
    code, printed, _ = run("voices", "check", "eve", "--voices", voices)
    assert code == 0 and f"warning: the transcript says '{WORDS}'" in printed and heard in printed
    save_audio(voices / "eve.flac", torch.zeros(96_000), 24_000)
    code, printed, said = run("voices", "check", "--voices", voices)
    assert code == 1 and "error: speech at -inf dBFS" in printed and "1 of 1 recordings" in said
    code, _, said = run("voices", "check", "zoe", "--voices", voices)
    assert code == 1 and "there are: ada, ben, eve" in said


def test_without_a_recogniser_the_check_says_so(run, voices, clip, monkeypatch):
    run("voices", "add", "eve", clip, "--text", WORDS, "--voices", voices)
    monkeypatch.setattr(
        "higgs.evaluate.judges.registry.MoonshineTiny.WHEEL",
        ("moonshine-nowhere", "1.0"),
        raising=True,
    )
    code, printed, said = run("voices", "check", "--voices", voices)
    assert code == 0 and printed == "eve: as it should be\n"
    assert "transcripts are not checked" in said and "pip install" in said


def test_the_transcripts_of_the_shipped_voices(nano, run):
    code, printed, said = run("voices", "check")
    if "transcripts are not checked" in said:
        pytest.skip("needs the judge's wheels")
    assert code == 0 and "heard" not in printed


def test_voices_are_played(run, voices, clip, monkeypatch, tmp_path):
    run("voices", "add", "eve", clip, "--text", WORDS, "--voices", voices)
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, printed, _ = run("voices", "play", "eve", "--voices", voices)
    assert code == 0 and printed.startswith(f"{voices / 'eve.flac'}: no player here (ffplay")
    player = tmp_path / "afplay"
    player.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/played.wav\n')
    player.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(shutil, "which", lambda name: real(name) if name == "afplay" else None)
    code, printed, _ = run("voices", "play", "eve", "--voices", voices)
    assert code == 0 and torch.equal(*(load_audio(p)[0] for p in (tmp_path / "played.wav", clip)))
    player.write_text("#!/bin/sh\nexit 3\n")
    code, _, said = run("voices", "play", "eve", "--voices", voices)
    assert code == 1 and "afplay could not play" in said
    code, _, said = run("voices", "play", "ada", "--voices", voices)
    assert code == 1 and "ada is a description (feminine)" in said
