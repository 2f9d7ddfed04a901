"""`python -m higgs speak | voices`: what it makes, and what it says to input that is wrong.

Run in this process, as `main` would: a new one for each row would take longer than the rows.
"""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from higgs import Engine, SamplingConfig
from higgs.__main__ import main
from higgs.audio import load_audio, save_audio
from higgs.data.chatml import smart_voice

WORDS = "one two three four five six seven eight"


@pytest.fixture
def run(monkeypatch, capsys):
    """-> (exit code, stdout, stderr) of `python -m higgs ...`, from the root of the repository."""
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
    _, printed, _ = run("speak", "It is late. I go.", *arguments, "--one-go")
    assert len(printed.splitlines()) == 1


def test_a_dialogue_is_spoken_by_its_speakers(nano, run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Engine, "generate", lambda self, sample, *a, **k: asked.append(sample) or 1 / 0
    )
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
        (["--one-go"], [text]),
        (
            ["--one-go", "--normalize"],
            ["[SPEAKER0] Good morning. [SPEAKER1] five ", "<SE>[Laughter]</SE>"],
        ),
        (["--no-alone", "--max-words", "3"], ["[SPEAKER0] Good morning."]),
    ):
        with pytest.raises(ZeroDivisionError):
            run(*common, *extra)
        assert [part.text for part in asked[-1].messages[-1].parts] == said
    assert asked[-2].messages[-1].parts[1].allow_special


# What is wrong on the command line, and what is said of it.
WRONG = [
    (["", "--voice", "ada"], "no text to speak"),
    ([" \n "], "no text to speak"),
    ([], "give a text or --file"),
    (["Hi.", "--file", "x.txt"], "give a text or --file"),
    (["--file", "nowhere.txt"], "nowhere.txt"),
    (["--file", "{nul}"], "U+0000 at character 5"),
    (["--file", "{latin}"], "latin is not text in UTF-8"),
    (["Hi.", "--voice", "nobody"], "no voice 'nobody' in data/voices; there are: ada, ben, cleo, kit, operator"),
    (["Hi.", "--voices", "{broken}", "--voice", "eve"], "the transcript"),
    (["Hi.", "--voices", "nowhere"], "nowhere does not exist; name one with --voices"),
    (["Hi.", "--reference", "a.wav"], "go together"),
    (["Hi.", "--reference", "a.wav", "--reference-text", " "], "the recording and its words"),
    (["Hi.", "--reference", "a.wav", "--reference-text", "x"], "a.wav does not exist"),
    (["[SPEAKER0] Hi."], "--speaker 0=ada --speaker 1=ben; voices are: ada, ben, cleo, kit, operator"),
    (["Hi.", "--speaker", "0=ada"], "tags in the text and --speaker go together"),
    (["[SPEAKER0] Hi.", "--speaker", "ada"], "NUMBER=VOICE, got 'ada'"),
    (["[SPEAKER0] Hi.", "--speaker", "0=zoe"], "no voice 'zoe'"),
    (["[SPEAKER0] Hi.", "--speaker", "0=ada", "--speaker", "0=ben"], "--speaker 0 is given twice"),
    (["[SPEAKER0] ", "--speaker", "0=ada"], "no text to speak behind the speaker tags"),
    (["[SPEAKER7] Hi.", "--speaker", "0=ada", "--speaker", "1=ben"], "no speaker 7; there are: 0, 1"),
    (["[SPEAKER7] Hi.", "--speaker", "0=ada", "--no-alone"], "[7]"),
    (["[SPEAKER x] Hi."], "unknown speaker tag '[SPEAKER x]'"),
    (["Oh [SPEAKER0] Hi.", "--speaker", "0=ada"], "'Oh' stands before"),
    (["Hi.", "--max-words", "0"], "max_words: "),
    (["Hi.", "--paragraph-pause", "-1"], "paragraph_pause: "),
    (["()", "--normalize"], "nothing is left to speak"),
    (["Hi.", "--checkpoint", "somewhere"], "neither 'nano'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_wrong_is_said(nano, run, tmp_path, arguments, message):
    (tmp_path / "nul").write_bytes(b"hello\0there")
    (tmp_path / "latin").write_bytes("héllo".encode("latin-1"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "eve.flac").write_bytes(b"")
    places = {name: tmp_path / name for name in ("nul", "latin", "broken")}
    code, _, said = run(
        "speak", *(a.format(**places) for a in arguments), "--out", tmp_path / "x.wav"
    )
    assert code == 1 and message in said and len(said.splitlines()) == 1
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
    assert f"what came before it is in {tmp_path / 'a.before.wav'}" in said
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


def test_the_help_says_what_there_is(run, capsys):
    for arguments, words in (
        (["speak"], ["--normalize", "--one-go", "default: 14 for nano, else 100", "--speaker NUMBER=VOICE"]),
        (["voices"], ["list", "add", "play", "check"]),
        (["voices", "add"], ["--text", "--force", "3 to 30 s"]),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as done:
            run(*arguments, "--help")
        said = " ".join(capsys.readouterr().out.split())
        assert done.value.code == 0 and all(word in said for word in words)


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
