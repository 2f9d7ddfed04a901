"""The command line: what it writes, and its messages for wrong input. Run in this process, which is faster."""

import dataclasses
import importlib
import inspect
import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import higgs
from higgs import Engine
from higgs.audio import load_audio, save_audio
from higgs.cli.app import main
from higgs.cli.finetune import finetune
from higgs.data.training.codes import CodesReader
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
    out, text = tmp_path / "a.wav", tmp_path / "a.txt"
    text.write_text("It is late.\n\nI go.")
    settings = {"--max-new-tokens": 12, "--retries": 0, "--max-words": 2, "--paragraph-pause": 1, "--out": out}
    options = [word for pair in settings.items() for word in pair]
    code, printed, _ = run("speak", "--file", text, *options)
    *chunks, summary = printed.splitlines()
    assert code == 0 and [line.split("  ")[-1] for line in chunks] == ["It is", "late.", "I go."]
    assert "length" in chunks[0] and summary.endswith("stopped by length")
    waveform, rate = load_audio(out)
    starts, ends = zip(*(map(float, re.findall(r"\d+\.\d\d", line)[:2]) for line in chunks), strict=True)
    assert starts[2] == pytest.approx(ends[1] + 1, abs=0.02) and starts[1] == ends[0]
    assert ends[2] == pytest.approx(len(waveform) / rate, abs=0.01)
    _, printed, _ = run("speak", "It is late. I go.", *options, "--no-chunking")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("suffix", "options"), [(".json", ["--no-chunking"]), (".json", ["--max-words", 3]), (".srt", []), (".vtt", [])]
)
def test_captions_of_each_word_leave_the_sound_as_it_is(nano, run, tmp_path, suffix, options):
    out, captions = tmp_path / "a.wav", tmp_path / f"a{suffix}"
    run("speak", "It is late. I go.", "--out", out, *options)
    plain = out.read_bytes()
    code, _, errors = run("speak", "It is late. I go.", "--out", out, "--captions", captions, *options)
    assert (code, errors) == (0, "") and out.read_bytes() == plain
    text = captions.read_text()
    if suffix == ".json":
        words, (waveform, rate) = json.loads(text), load_audio(out)
        assert [word["word"] for word in words] == "It is late. I go.".split()
        assert all(0 <= a["start"] <= a["end"] <= b["start"] for a, b in pairwise(words))
        assert len(waveform) / rate / 2 < words[-1]["end"] <= len(waveform) / rate + 0.05
    else:
        assert text.count("-->") == 5


DIALOGUE = "[SPEAKER0] Good morning. [SPEAKER1] 5 [laugh]"


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--normalize"], ["Good morning."]),
        (["--no-chunking"], [DIALOGUE]),
        (["--no-chunking", "--normalize"], ["[SPEAKER0] Good morning. [SPEAKER1] five ", "<SE>[Laughter]</SE>"]),
        (["--no-per-speaker-context", "--max-words", "3"], ["[SPEAKER0] Good morning."]),
    ],
)
def test_a_dialogue_is_spoken_by_its_speakers(nano, run, tmp_path, monkeypatch, options, first):
    """The first prompt ends in the whole dialogue, or in its first turn."""
    samples = []
    monkeypatch.setattr(Engine, "sequence", lambda self, sample, *a, **k: samples.append(sample) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("speak", DIALOGUE, "--speaker", "0=ada", "--speaker", "1=ben", "--out", tmp_path / "a.wav", *options)
    parts = samples[0].messages[-1].parts
    assert [part.text for part in parts] == first and all(part.allow_special for part in parts[1:])


# Arguments, exit status, key words of the message. Status 2: options that are wrong by themselves.
WRONG = [
    (["", "--voice", "ada"], 1, "no text to speak"),
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
    (["Hi.", "--max-words", "0"], 2, "--max-words"),
    (["Hi.", "--paragraph-pause", "-1"], 2, "--paragraph-pause"),
    (["Hi.", "--top-k", "many"], 2, "--top-k"),
    (["Hi.", "--keep-digits"], 2, "--normalize"),
    (["[SPEAKER0] Hi.", "--speaker", "0=ada", "--reference", "a.wav", "--reference-text", "Ho."], 2, "voices add"),
    (["Hi.", "--temprature", "1"], 2, "--temperature"),
    (["Hi.", "--top-p", "0"], 1, "top_p"),
    (["()", "--normalize"], 1, "nothing to speak"),
    (["Hi.", "--checkpoint", "somewhere"], 1, "neither 'nano'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "words"), WRONG)
def test_wrong_arguments(nano, run, tmp_path, arguments, status, words):
    (tmp_path / "nul").write_bytes(b"hello\0there")
    (tmp_path / "latin").write_bytes("héllo".encode("latin-1"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "eve.flac").write_bytes(b"")
    arguments = [a.format(**{name: tmp_path / name for name in ("nul", "latin", "broken")}) for a in arguments]
    code, printed, errors = run("speak", *arguments, "--out", tmp_path / "x.wav")
    *usage, last = errors.splitlines()
    assert (code, printed) == (status, "") and last.startswith("Error: ") and words in last
    assert bool(usage) == (status == 2)
    assert not (tmp_path / "x.wav").exists()


@pytest.mark.parametrize(
    ("option", "value", "status"), [("--max-batch", "0", 2), ("--dtype", "int3", 2), ("--top-p", "0", 1)]
)
def test_wrong_options_of_the_server(nano, run, option, value, status):
    code, _, errors = run("serve", option, value)
    assert code == status and option.replace("-", "").replace("_", "") in errors.replace("-", "").replace("_", "")


def test_a_port_that_is_taken_is_told_before_a_checkpoint_is_loaded(nano, run, monkeypatch):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("too late"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, printed, errors = run("serve", "--port", port)
    assert (code, printed) == (1, "") and f"cannot listen on 127.0.0.1, port {port}: Address already in use" in errors
    code, _, errors = run("serve", "--host", "192.0.2.1", "--port", 0)
    assert code == 1 and "cannot listen on 192.0.2.1, port 0: Cannot assign requested address" in errors


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("{folder}/folder.wav", "folder.wav is a folder"),
        ("{folder}/file/a.wav", "a.wav cannot be written: File exists"),
        ("/proc/a.wav", "a.wav cannot be written"),
        ("{folder}/a.txt", "a.txt: times of words are written as .json, .srt or .vtt"),
        ("{folder}/file/a.srt", "a.srt cannot be written"),
        ("{folder}/a.aac", "audio is written as .wav, .flac, .aiff, .mp3, .opus, .ogg"),
    ],
)
def test_the_output_is_checked_before_the_checkpoint_is_read(run, tmp_path, monkeypatch, out, message):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    place = out.format(folder=tmp_path)
    option = ["--captions", place, "--out", tmp_path / "x.wav"] if out.endswith((".txt", ".srt")) else ["--out", place]
    code, _, errors = run("speak", "Hi.", *option)
    assert code == 1 and message in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("serve --voices {none}", "voice folder {none} does not exist; name one with --voices"),
        ("serve --voices {file}", "voice folder {file} does not exist: that is a file; name one with --voices"),
        ("serve --checkpoint {none}", "'{none}' is neither 'nano'"),
        ("speak Hi. --out {x}.wav --voices {file}", "voice folder {file} does not exist: that is a file; name one"),
        ("speak Hi. --out {x}.wav --reference {folder} --reference-text Hi.", "{folder} does not exist: that is a"),
        ("speak --out {x}.wav --file {none}", "text file {none} does not exist"),
        ("speak --out {x}.wav --file {folder}", "text file {folder} does not exist: that is a folder"),
        ("speak Hi. --out {x}.wav --checkpoint {none}", "'{none}' is neither 'nano'"),
        ("voices --voices {file}", "voice folder {file} does not exist: that is a file; name one with --voices"),
        ("voices check --voices {none}", "voice folder {none} does not exist; name one with --voices"),
        ("voices add zoe {folder} --text Hi. --voices {x}", "audio file {folder} does not exist: that is a folder"),
        ("tokenize {none} {x}", "corpus {none} does not exist; name s3://BUCKET/PREFIX, a folder, a listing or a"),
        ("tokenize {folder} {x} --checkpoint {none}", "'{none}' is neither 'nano'"),
        ("corpus {file}", "{file} is neither a folder nor s3://BUCKET/PREFIX"),
        ("parts prune {none} --keep {folder}", "folder of parts {none} does not exist; name the OUT of"),
        ("parts prune {folder} --keep {none}", "{none} holds no codes: there is no index.json"),
        ("finetune {none} --out {x}", "text file {none} does not exist"),
        ("finetune {folder} --out {x}", "text file {folder} does not exist: that is a folder"),
        ("finetune {file} --out {x}", "1 of 1 records cannot be used"),
        ("finetune {records} --out {x} --replay {none}", "text file {none} does not exist"),
        ("finetune {records} --out {x} --replay {file}", "1 of 1 records cannot be used"),
        ("finetune {records} --out {x} --checkpoint {none}", "'{none}' is neither 'nano'"),
        ("finetune {records} --out {file}", "tuning.pt cannot be written"),
        ("compare {none} workspace --out {x}", "'{none}' is no folder, no revision of Git"),
        ("listen workspace {none} --out {x}", "'{none}' is no folder, no revision of Git"),
        ("inspect {none}", "checkpoint '{none}': no such folder"),
    ],
)  # fmt: skip
def test_what_is_to_be_read_is_looked_for_before_a_checkpoint_is_loaded(run, tmp_path, monkeypatch, arguments, message):
    """One line that says what was expected, and what is there; nothing is written."""
    monkeypatch.setattr("higgs.arithmetic.set_arithmetic", lambda _: None)
    for name in ("higgs.Engine", "higgs.AudioTokenizer", "higgs.HiggsAudio"):
        monkeypatch.setattr(f"{name}.from_pretrained", lambda *_, **__: pytest.fail("too late"))
    names = {name: tmp_path / name for name in ("none", "file", "folder", "records", "x")}
    names["folder"].mkdir()
    names["file"].write_text("Good morning.\n")
    names["records"].write_text('{"audio": "a.wav", "text": "Hi."}\n')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, printed, errors = run(*(word.format(**names) for word in arguments.split()))
    assert (code, printed) == (1, "") and errors.startswith("Error: ") and message.format(**names) in errors
    assert len(errors.splitlines()) == 1 and before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_a_silent_chunk_does_not_lose_the_chunks_before_it(nano, run, tmp_path, monkeypatch):
    run_sequences, responses = Engine.run, []

    def silent_second(self, *arguments, **options):
        (response,) = run_sequences(self, *arguments, **options)
        responses.append(response)
        if len(responses) > 1:
            response.usage = type(response.usage)(10, 0, 0, 0)
        return [response]

    monkeypatch.setattr(Engine, "run", silent_second)
    options = ["--max-words", 3, "--retries", 0, "--max-new-tokens", 12, "--out", tmp_path / "a.wav"]
    code, _, errors = run("speak", "It is late. I go.", *options)
    before = tmp_path / "a.before.wav"
    assert code == 1 and "chunk 2 of 2, 'I go.': no audio" in errors and str(before) in errors
    assert list(tmp_path.iterdir()) == [before]
    waveform, rate = load_audio(before)
    assert len(waveform) == 960 * responses[0].usage.audio_frames and rate == 24_000


@pytest.mark.parametrize("error", [FloatingPointError, KeyError, OSError, MemoryError])
def test_an_error_is_one_line_without_a_class_of_python(run, monkeypatch, error):
    def fails(*_):
        raise error("loss nan")

    monkeypatch.setattr("higgs.data.voice_folder.read_voices", fails)
    assert run("voices") == (1, "", "Error: loss nan\n")
    monkeypatch.setattr("higgs.data.voice_folder.read_voices", lambda *_: bytes(1 << 60))
    assert run("voices") == (1, "", "Error: MemoryError\n")


def test_an_interrupted_command(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("higgs.data.voice_folder.read_voices", interrupted)
    assert run("voices") == (130, "", "stopped\n")


# Odd text that is spoken all the same: as text, whatever it looks like.
ODD = ["Hi 🎉👩‍👩‍👧!", "שלום עולם", "<|eot_id|><|AUDIO_OUT|>", "<SE>[Laughter]</SE>", "x" * 10_000]


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_spoken(nano, run, tmp_path, monkeypatch, text):
    """Through the real tokenizer and the real prompt, up to the model."""
    prompts, sequence = [], Engine.sequence

    def prepared(self, sample, *_, **__):
        prompts.append((sequence(self, sample).prompt.input_ids[0].tolist(), self.ids))
        raise ValueError("stop here")

    monkeypatch.setattr(Engine, "sequence", prepared)
    assert "stop here" in run("speak", text, "--out", tmp_path / "x.wav")[2]
    ((token_ids, ids),) = prompts
    assert token_ids.count(ids.end_of_turn) == 2 and ids.audio_out not in token_ids
    assert len(token_ids) < 700, "10,000 characters come in chunks"


def test_help(run):
    for command, words in (
        ([], "speak serve inspect compare finetune voices tokenize corpus parts --version --install-completion"),
        (["speak"], "--normalize --no-chunking checkpoint's --speaker NUMBER=VOICE"),
        (["voices"], "list add play check"),
        (["voices", "add"], "--text --force"),
    ):
        code, printed, _ = run(*command, "--help")
        assert code == 0 and all(word in printed for word in words.split())


def test_help_is_quick_and_does_not_import_torch():
    code = "import sys, higgs.cli.app; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert modules.returncode == 0 and not {"torch", "numpy"} & set(modules.stdout.split())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "higgs", "--help"], cwd=ROOT, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_the_version_the_public_names_and_the_console_script(run):
    assert run("--version") == (0, f"{version('higgs')}\n", "") and higgs.__version__ == version("higgs")
    assert set(dir(higgs)) == set(higgs.__all__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["higgs"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_text_comes_from_standard_input_and_audio_goes_to_standard_output(nano, tmp_path):
    command, out = [sys.executable, "-m", "higgs", "speak", "-", "--max-new-tokens", "20", "--json"], tmp_path / "a.wav"
    piped, filed = (
        subprocess.run([*command, "--out", str(path)], cwd=ROOT, capture_output=True, input=b"Good morning.")
        for path in ("-", out)
    )
    assert piped.returncode == filed.returncode == 0, piped.stderr + filed.stderr
    assert piped.stdout == out.read_bytes()
    result, (waveform, rate) = json.loads(filed.stdout), load_audio(out)
    assert result.items() >= {"out": str(out), "sample_rate": rate, "chunks": []}.items()
    assert result["seconds"] == len(waveform) / rate
    assert json.loads(piped.stderr) == result | {"out": "-"}


@pytest.mark.parametrize("suffix", ["mp3", "opus", "ogg", "FLAC"])
def test_audio_is_written_in_the_format_of_its_name(nano, run, tmp_path, suffix):
    """And a text with digits, which the default checkpoint cannot read, is spoken with a warning."""
    out = tmp_path / f"a.{suffix}"
    text, options = "Good morning 9", ["--max-new-tokens", 20, "--json", "--out", out]
    code, printed, errors = run("speak", text, *options)
    assert code == 0 and "--normalize" in errors and "digits" in errors
    waveform, rate = load_audio(out)
    # MP3 fills its last frame.
    assert len(waveform) / rate == pytest.approx(json.loads(printed)["seconds"], abs=0.1) and waveform.abs().max() > 0
    if suffix == "mp3":
        assert "digits" not in run("speak", text, *options, "--normalize")[2]


def test_the_defaults_of_finetune_are_those_of_the_code():
    options = inspect.signature(finetune).parameters
    for field in dataclasses.fields(TuneConfig):
        if field.name in options and field.name != "checkpoint":
            assert options[field.name].default == field.default, field.name


@pytest.fixture
def eve(run, voices, clip) -> Path:
    """`voices` with a recording, the clip."""
    code, printed, _ = run("voices", "add", "eve", clip, "--text", WORDS, "--voices", voices)
    assert code == 0 and "eve.flac" in printed and "voices check eve" in printed
    return voices


def test_voices_are_added_and_listed(run, eve, clip):
    """Also beside a recording that cannot be read."""
    (eve / "bad.wav").write_bytes(b"no sound")
    (eve / "bad.txt").write_text(WORDS)
    for command in (["voices"], ["voices", "list"]):
        code, printed, _ = run(*command, "--voices", eve)
        assert code == 0 and printed.splitlines()[0].split() == ["ada", "described:", "feminine"]
        assert [line.split()[0] for line in printed.splitlines()] == ["ada", "bad", "ben", "eve"]
        assert f"eve          recording: {eve / 'eve.flac'} (4.0 s)" in printed
        assert f"{eve / 'bad.wav'} (cannot be read: " in printed
    (eve / "kim.txt").write_text(WORDS)
    (eve / "kim.mp3").write_bytes(b"")
    for command in (["voices", "--json"], ["voices", "list", "--json"]):
        code, printed, _ = run(*command, "--voices", eve)
        ada, bad, _, voice, kim = json.loads(printed)
        assert code == 0 and (ada["name"], ada["description"], ada["audio"]) == ("ada", "feminine", None)
        assert (voice["transcript"], voice["seconds"], voice["fault"]) == (WORDS, 4.0, None)
        assert "cannot be read" in bad["fault"] and kim["name"] == "kim" and "convert it" in kim["fault"]
    for name, file, message in (("eve", clip, "--force"), ("zoe", "nowhere.wav", "does not exist")):
        code, _, errors = run("voices", "add", name, file, "--text", WORDS, "--voices", eve)
        assert code == 1 and message in errors
    assert run("voices", "add", "eve", clip, "--text", WORDS, "--voices", eve, "--force")[0] == 0


def test_voices_are_checked(run, eve, monkeypatch):
    hypothesis = WORDS

    class Judge:
        def transcribe(self, waveform, sample_rate):
            assert (len(waveform), sample_rate) == (96_000, 24_000)
            return hypothesis

    def check(*names):
        return run("voices", "check", *names, "--voices", eve)

    monkeypatch.setattr("higgs.evaluate.judges.registry.make_judge", lambda *_: Judge())
    code, _, errors = check("ada")
    assert code == 1 and "ada is a description: nothing to check" in errors
    assert check()[:2] == (0, "eve: as it should be\n")
    hypothesis = "something else"
    code, printed, _ = check("eve")
    assert code == 0 and f"warning: the transcript says '{WORDS}'" in printed and hypothesis in printed
    save_audio(eve / "eve.flac", torch.zeros(96_000), 24_000)
    code, printed, errors = check()
    assert code == 1 and "error: speech at -inf dBFS" in printed and "1 of 1 recordings" in errors
    code, _, errors = check("zoe")
    assert code == 1 and "there are: ada, ben, eve" in errors


def test_without_a_recogniser_transcripts_are_not_checked(run, eve, monkeypatch):
    monkeypatch.setattr("higgs.evaluate.judges.registry.MoonshineTiny.WHEEL", ("moonshine-nowhere", "1.0"))
    code, printed, errors = run("voices", "check", "--voices", eve)
    assert code == 0 and printed == "eve: as it should be\n"
    assert "transcripts are not checked" in errors and "pip install" in errors


def test_the_transcripts_of_the_shipped_voices(nano, run):
    code, printed, errors = run("voices", "check")
    assert code == 0
    if "transcripts are not checked" in errors:
        pytest.skip("needs the judge's wheels")
    assert "heard" not in printed


def test_voices_are_played(run, eve, clip, monkeypatch, tmp_path):
    def play(name):
        return run("voices", "play", name, "--voices", eve)

    which, player = shutil.which, tmp_path / "afplay"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, printed, _ = play("eve")
    assert code == 0 and printed.startswith(f"{eve / 'eve.flac'}: no player here (ffplay")
    player.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/played.wav\n')
    player.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(shutil, "which", lambda name: which(name) if name == "afplay" else None)
    assert play("eve")[0] == 0 and torch.equal(*(load_audio(p)[0] for p in (tmp_path / "played.wav", clip)))
    player.write_text("#!/bin/sh\nexit 3\n")
    for name, message in (("eve", "afplay could not play"), ("ada", "ada is a description (feminine)")):
        code, _, errors = play(name)
        assert code == 1 and message in errors


def test_checking_all_voices_names_one_that_cannot_be_used(run, tmp_path):
    (tmp_path / "eve.wav").write_bytes(b"")
    code, out, errors = run("voices", "--voices", tmp_path, "check")
    assert code == 1 and "eve: error: the transcript" in out and "1 of 1 recordings" in errors


def test_a_corpus_is_listed_tokenized_and_pruned(run, nano, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("higgs.arithmetic.set_arithmetic", lambda _: None)
    source, out, listing = tmp_path / "in", tmp_path / "out", tmp_path / "corpus.jsonl"
    source.mkdir()
    for name in ("a", "b"):
        shutil.copy(clip, source / f"{name}.wav")
    (source / "cut.wav").write_bytes(clip.read_bytes()[:5000])
    assert run("corpus", source, "--out", listing) == (0, "", "")
    assert run("corpus", source)[1] == listing.read_text() and listing.read_text().count("\n") == 3

    def tokenize(*options):
        code, printed, errors = run("tokenize", listing, out, "--checkpoint", nano, "--workers", 1, *options)
        return code, printed and json.loads(printed), errors.splitlines()[-1:]

    code, counts, _ = tokenize()
    assert (code, counts) == (0, {"clips": 2, "frames": 200, "failed": {"unusable audio": 1}})
    assert json.loads((out / "failed.jsonl").read_text())["id"] == "cut.wav"
    shards = CodesReader(out).hashes
    assert tokenize()[1] == counts and CodesReader(out).hashes == shards
    assert tokenize("--skip", "b.wav", "--index", tmp_path / "one")[1]["clips"] == 1
    files = {path.name for path in out.iterdir()}
    assert "2 parts, delete them with --force" in run("parts", "prune", out, "--keep", tmp_path / "one")[1]
    assert {path.name for path in out.iterdir()} == files
    assert "2 parts, deleted" in run("parts", "prune", out, "--keep", tmp_path / "one", "--force")[1]
    assert {path.name for path in out.glob("*.safetensors")} == set(CodesReader(tmp_path / "one").hashes)
    for options, message in (
        (["--cluster", "auto"], "auto needs work: s3://BUCKET/PREFIX"), (["--cluster", "ray://x:1"], "cluster"),
        (["--skip", "a.wav", "--skip", "b.wav", "--skip", "cut.wav"], "holds no audio file and no tar"),
    ):  # fmt: skip
        code, _, errors = tokenize(*options)
        assert code == 1 and message in errors[0]
    code, counts, (error,) = tokenize("--skip", "a.wav", "--skip", "b.wav", "--index", tmp_path / "none")
    assert (code, counts["clips"]) == (1, 0) and f"nothing could be encoded: {tmp_path}/none/failed.jsonl" in error
    assert "neither a folder nor s3://" in run("corpus", tmp_path / "nowhere")[2]
    monkeypatch.setattr("higgs.jobs.parts.run", lambda *_: pytest.fail("too late"))
    assert f"{listing}/index.json cannot be written" in tokenize("--index", listing)[2][0]


def test_a_listing_that_is_made_again_keeps_what_its_lines_leave_out(run, tmp_path):
    """And no other file is replaced by one."""
    source, listing = tmp_path / "in", tmp_path / "corpus.jsonl"
    source.mkdir()
    for name in ("a.tar", "b.tar"):
        (source / name).write_bytes(b"a tar")
    run("corpus", source, "--out", listing)
    first, second = map(json.loads, listing.read_text().splitlines())
    listing.write_text("".join(json.dumps(line) + "\n" for line in (first | {"skip": ["a.tar/x.flac"]}, second)))
    (source / "a.tar").write_bytes(b"another")
    (source / "c.wav").write_bytes(b"new")
    assert run("corpus", source, "--out", listing) == (0, "", "")
    lines = list(map(json.loads, listing.read_text().splitlines()))
    assert [(line["id"], line.get("skip")) for line in lines] == [
        ("a.tar", ["a.tar/x.flac"]), ("b.tar", None), ("c.wav", None),
    ] and lines[0]["etag"] != first["etag"]  # fmt: skip
    listing.write_text('{"id": "a", "path": "a.flac"}\n')
    code, printed, errors = run("corpus", source, "--out", listing)
    assert (code, printed) == (1, "") and "missing key 'url'" in errors and "name another file" in errors
    assert listing.read_text() == '{"id": "a", "path": "a.flac"}\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["compare", "--help"],
        ["voices", "check", "--help"],
        ["voices"],
        ["voices", "list", "--json"],
        ["voices", "check", "nobody"],
        ["voices", "play", "nobody"],
        ["compare", "nobody", "workspace"],
        ["listen", "nobody", "workspace"],
        ["speak", "--voice", "nobody", "--out", "x.wav", "Hi."],
        ["speak", "--speaker", "0=nobody", "--out", "x.wav", "[SPEAKER0] Hi"],
        ["serve", "--voices", "no.txt"],
        ["serve", "--checkpoint", "no.txt"],
        ["speak", "--file", "no.txt", "--out", "x.wav"],
        ["speak", "--out", "no.txt", "Hi."],
        ["speak", "--out", "x.wav", "--captions", "no.txt", "Hi."],
        ["speak", "--out", "x.wav", "--reference", "no.txt", "--reference-text", "Hi.", "Hi."],
    ],
)
def test_what_needs_no_model_imports_none(nano, tmp_path, arguments):
    """Help, lists, and refusals, which come before what they would have needed."""
    wrong = [word.removeprefix("0=") for word in arguments if word.endswith(("nobody", "no.txt"))]
    arguments = [str(tmp_path / word) if "." in word else word for word in arguments]
    code = "import sys; from higgs.cli.app import main; sys.argv = sys.argv[:1] + sys.argv[2:]; "
    code += f"assert main() == {len(wrong)}; "
    code += "heavy = {'torch', 'torchaudio', 'transformers', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    command = [sys.executable, "-c", code, "x", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and (done.stdout or wrong), done.stderr
    assert all(done.stderr.startswith("Error: ") and word in done.stderr for word in wrong), done.stderr
