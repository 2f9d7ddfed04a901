"""Audio, codes and disks that are not as they should be: a clear error, or the treatment that is documented."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, run
from test_notebook import PARAMS, dump, make_notebook

from higgs import AudioContent, AudioTokenizer, Engine
from higgs.audio import load_audio, resample, save_audio
from higgs.files import replacing

RATE = 24_000
HOUR = 3600


@pytest.fixture(scope="module")
def codec(golden) -> AudioTokenizer:
    return AudioTokenizer.from_pretrained(golden / "codec")


@pytest.fixture(scope="module")
def engine(nano) -> Engine:
    return Engine.from_pretrained(model=nano / "model", tokenizer=nano / "codec", device="cpu")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


def with_one(value: float) -> torch.Tensor:
    clip = noise(5000)
    clip[1234] = value
    return clip


# Waveform, sample rate, what is raised. Nothing is as long as it says: an hour is one sample, seen many times.
BAD_WAVEFORMS = {
    "empty": (torch.zeros(0), RATE, ValueError, "waveform: empty"),
    "no clip": (torch.zeros(0, 1, 5000), RATE, ValueError, r"mono .* shape \(0, 1, 5000\)"),
    "NaN": (with_one(float("nan")), RATE, ValueError, "1 of 5000 samples are NaN"),
    "int16": (
        torch.zeros(5000, dtype=torch.int16),
        RATE,
        TypeError,
        "divide 16-bit integers by 32768, got torch.int16",
    ),
    "int16 as float": (noise(5000) * 32768, RATE, ValueError, "divide 16-bit integers by 32768"),
    "stereo": (noise(2, 5000), RATE, ValueError, "mono .* average the channels"),
    "stereo in a batch": (noise(3, 2, 5000), RATE, ValueError, r"mono .* shape \(2, 5000\)"),
    "118 samples": (noise(118), RATE, ValueError, "118 samples .* too short"),
    "0.01 s at 8 kHz": (noise(39), 8000, ValueError, "117 samples at 24000 Hz are too short"),
    "an hour": (torch.zeros(1).expand(HOUR * RATE), RATE, ValueError, "3600 s .* at most 300 s"),
    "no rate": (noise(5000), 0, ValueError, "sample rate: must be positive, got 0"),
    "a rate in kHz": (noise(5000), 22.05, TypeError, "whole number of Hz, got 22.05"),
    "a rate in words": (noise(5000), "24k", TypeError, "whole number of Hz, got '24k'"),
    "an odd rate": (noise(5000), 44_101, ValueError, "from 44101 Hz to 24000 Hz: .* usual rates"),
    "an array": ([np.zeros(5000)], RATE, TypeError, "clip 0: expected a torch.Tensor, got ndarray"),
    "one of a list": ([noise(5000), with_one(float("nan"))], RATE, ValueError, "clip 1: 1 of 5000"),
}


@pytest.mark.parametrize("case", BAD_WAVEFORMS)
def test_waveforms_that_are_refused(codec, case):
    waveform, rate, error, message = BAD_WAVEFORMS[case]
    with pytest.raises(error, match=message):
        codec.encode(waveform, rate)


# Waveform, sample rate, frames of the codes.
UNUSUAL_WAVEFORMS = {
    "0.01 s": (noise(240), RATE, 1),
    "8 kHz": (noise(8000), 8000, 25),
    "half precision": (noise(RATE).half(), RATE, 25),
    "double precision": (noise(RATE).double(), RATE, 25),
    "silence": (torch.zeros(RATE), RATE, 25),
    "louder than full scale": (noise(RATE) * 30, RATE, 25),
}


@pytest.mark.parametrize("case", UNUSUAL_WAVEFORMS)
def test_waveforms_that_are_encoded(codec, case):
    waveform, rate, frames = UNUSUAL_WAVEFORMS[case]
    assert codec.encode(waveform, rate).shape == (8, frames)


def test_one_sample_and_common_rates(codec):
    assert codec.encode(noise(1), pad_to_hop=True).shape == (8, 1)
    for rate in (7350, 8000, 11_025, 22_050, 37_800, 44_100, 96_000, 192_000):
        assert len(resample(noise(rate), rate, RATE)) == RATE


CODES = torch.zeros(8, 3, dtype=torch.long)
BAD_CODES = {
    "floats": (CODES.float(), TypeError, "codes are integers, got torch.float32"),
    "booleans": (CODES.bool(), TypeError, "codes are integers, got torch.bool"),
    "no frame": (CODES[:, :0], ValueError, "no frame"),
    "no codebook": (CODES[:0], ValueError, r"K <= 8, got shape \(0, 3\)"),
    "nine codebooks": (torch.zeros(9, 3, dtype=torch.long), ValueError, r"K <= 8, got shape \(9, 3\)"),
    "no clip": (torch.zeros(0, 8, 3, dtype=torch.long), ValueError, r"got shape \(0, 8, 3\)"),
    "stream ids": (CODES + 1024, ValueError, r"in 0 \.\.\. 1023, got 1024 \.\.\. 1024"),
    "below 0": (CODES - 1, ValueError, r"got -1 \.\.\. -1"),
    "one of a list": ([CODES, CODES - 1], ValueError, "codes 1: must be in"),
    "a list of lists": ([[1, 2], [3, 4]], TypeError, "codes 0: expected a torch.Tensor, got list"),
}


@pytest.mark.parametrize("case", BAD_CODES)
def test_codes_that_are_refused(codec, case):
    codes, error, message = BAD_CODES[case]
    with pytest.raises(error, match=message):
        codec.decode(codes)


def test_codes_of_any_integer_type_are_decoded(codec):
    codes = torch.full((8, 3), 200)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(codec.decode(codes.to(dtype)), codec.decode(codes))


def written(samples: np.ndarray, rate: int = RATE, **how: str) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, samples, rate, **how)


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def changed(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    """A second of noise whose bytes are changed in place."""

    def write(path: Path) -> None:
        soundfile.write(path, noise(RATE).numpy(), RATE)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return write


def cut_off(share: float) -> Callable[[Path], None]:
    def cut(data: bytearray) -> None:
        del data[int(len(data) * share) :]

    return changed(cut)


def scratch(data: bytearray) -> None:
    data[len(data) // 2 : len(data) // 2 + 200] = np.random.default_rng(0).bytes(200)


def without_length(data: bytearray) -> None:
    """As an encoder leaves it that wrote to a pipe: no number of samples in the header."""
    data[21] &= 0xF0
    data[22:26] = bytes(4)


def long(seconds: int, rate: int = 8000) -> Callable[[Path], None]:
    """So many seconds of 16-bit silence that take no room on the disk: the file is a hole."""

    def write(path: Path) -> None:
        soundfile.write(path, np.zeros(1, np.int16), rate)
        header = bytearray(path.read_bytes()[:44])
        size = 2 * seconds * rate
        header[4:8], header[40:44] = (n.to_bytes(4, "little") for n in (size + 36, size))
        path.write_bytes(header)
        os.truncate(path, 44 + size)

    return write


NOT_A_NUMBER = np.array([0.0, np.nan, 0.5] * 1000, np.float32)
BAD_FILES = {
    "nothing.wav": (lambda path: None, FileNotFoundError, "does not exist"),
    "folder.wav": (Path.mkdir, FileNotFoundError, "does not exist"),
    "empty.wav": (written(np.zeros(0)), ValueError, "empty"),
    "zero_bytes.flac": (content(b""), ValueError, "not an audio file"),
    "text.wav": (content(b"this is no audio\n" * 50), ValueError, "not an audio file"),
    "random.flac": (content(np.random.default_rng(0).bytes(20_000)), ValueError, "not an audio file"),
    "samples.raw": (content(bytes(20_000)), ValueError, "raw samples"),
    "cut_off.wav": (cut_off(0.5), ValueError, r"cut off: \d+ of 48044 bytes are there"),
    "cut_off.aiff": (cut_off(0.9), ValueError, "cut off"),
    "cut_off.flac": (cut_off(0.5), ValueError, "not an audio file"),
    "scratched.flac": (changed(scratch), ValueError, "not an audio file"),
    "endless.flac": (changed(without_length), ValueError, "does not say how long it is"),
    "nan.wav": (written(NOT_A_NUMBER, subtype="FLOAT"), ValueError, "1000 of 3000 samples are NaN"),
    "long.wav": (long(HOUR + 1), ValueError, "3601 s is longer than 3600 s"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_refused(engine, tmp_path, name):
    """By `load_audio` and as a reference of the engine alike, with the name of the file."""
    write, error, message = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(error, match=f"{name}.*({message})"):
        load_audio(tmp_path / name, RATE)
    with pytest.raises(error, match=f"{name}.*({message})"):
        engine.reference_codes(AudioContent(str(tmp_path / name)))


def test_references_that_are_refused(engine, tmp_path):
    long(61)(tmp_path / "minute.wav")
    with pytest.raises(ValueError, match=r"a reference of 61 s; at most 60 s"):
        engine.reference_codes(AudioContent(str(tmp_path / "minute.wav")))
    written(np.full(100, 0.1))(tmp_path / "short.wav")
    with pytest.raises(ValueError, match="100 samples .* too short"):
        engine.reference_codes(AudioContent(str(tmp_path / "short.wav")))


def test_references_that_are_heard(engine, tmp_path):
    """Stereo is averaged, 8 kHz resampled, a hundredth of a second is one frame."""
    sound = noise(8000).numpy()
    written(np.stack([sound, -0.5 * sound], 1), 8000)(tmp_path / "stereo.wav")
    written(0.25 * sound, 8000, subtype="FLOAT")(tmp_path / "mono.wav")
    stereo, mono = (engine.reference_codes(AudioContent(str(tmp_path / name))) for name in ("stereo.wav", "mono.wav"))
    assert stereo.shape == mono.shape == (8, 25)
    written(noise(240).numpy())(tmp_path / "click.wav")
    assert engine.reference_codes(AudioContent(str(tmp_path / "click.wav"))).shape == (8, 1)


FULL_DISK = """
import json, resource, sys
from pathlib import Path
import torch
from higgs import AudioTokenizer, ChatMLSample, Message
from higgs.audio import save_audio
from higgs.workflow.outputs import write_json
from higgs.data.chatml_json import write_conversations
from higgs.data.training.codes import save_codes
from higgs.train.checkpointing import save_state

codec = AudioTokenizer.from_pretrained(sys.argv[1])
noise = torch.rand(48_000) - 0.5
writers = {
    "a.wav": lambda path: save_audio(path, noise, 24_000),
    "a.flac": lambda path: save_audio(path, noise, 24_000),
    "a.safetensors": lambda path: save_codes(path, {"clip": torch.zeros(8, 9000).long()}),
    "a.json": lambda path: write_json(path, list(range(20_000))),
    "a.jsonl": lambda path: write_conversations(path, [ChatMLSample([Message("user", "a" * 99_999)])]),
    "a.pt": lambda path: save_state(path, weights=noise),
    "model.safetensors": lambda path: codec.save_pretrained(path.parent),
}
Path("old").mkdir()
for name in writers:
    Path("old", name).write_text("the last one, whole")
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for folder in ("new", "old"):
    for name, write in writers.items():
        try:
            write(Path(folder, name))
        except Exception as error:
            notes = getattr(error, "__notes__", [])
            print(json.dumps([folder, name, repr(error), getattr(error, "filename", None), notes]))
print(json.dumps([{path.name: path.read_text() for path in Path(f).iterdir()} for f in ("new", "old")]))
"""
# A disk of 64 kB, in a namespace of its own: for whoever may make one.
SMALL_DISK = 'mount -t tmpfs -o size=64k none "$0" && cd "$0" && exec "$@"'


@pytest.mark.parametrize("how", ["limit", "disk"])
def test_a_full_disk_leaves_what_was_there(tmp_path, golden, how):
    """A real one; and a limit on the size of files, which breaks writes off alike and needs no rights."""
    names = ["a.wav", "a.flac", "a.safetensors", "a.json", "a.jsonl", "a.pt", "model.safetensors"]
    command = [sys.executable, "-c", FULL_DISK, str(golden / "codec"), how]
    code = "OSError(27, 'File too large')"
    if how == "disk":
        space = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, tmp_path]
        if not shutil.which("unshare") or subprocess.run([*space, "true"], stderr=subprocess.DEVNULL).returncode:
            pytest.skip("a disk cannot be mounted here")
        command, code = [*space, *command], "OSError(28, 'No space left on device')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *errors, (new, old) = map(json.loads, done.stdout.splitlines())
    assert [row[:2] for row in errors] == [[folder, name] for folder in ("new", "old") for name in names]
    for folder, name, error, filename, notes in errors:
        assert notes == [f"while writing {folder}/{name}, which is as it was before"]
        # Two libraries do not pass the system's error on as it is.
        if name not in ("a.safetensors", "a.pt", "model.safetensors"):
            assert error == code and filename == f"{folder}/{name}"
    assert new == {} and old == dict.fromkeys(names, "the last one, whole")


def test_a_killed_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("whole")
    child = os.fork()
    if child == 0:
        with replacing(path) as partial:
            partial.write_text("hal")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_text() == "whole"
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


def test_two_writers_of_one_path_each_write_all_of_it(tmp_path):
    """As two workers that make one part; nested, so that each step of one lies between two of the other."""
    path = tmp_path / ("é" * 120)
    with replacing(path) as outer:
        outer.write_text("half")
        with replacing(path) as inner:
            inner.write_text("whole")
        assert path.read_text() == "whole"
        with pytest.raises(KeyError), replacing(path) as failed:
            failed.write_text("n")
            raise KeyError
        outer.write_text("whole, too")
    assert path.read_text() == "whole, too" and os.listdir(tmp_path) == [path.name]


def test_a_file_of_a_writer_that_is_alive_is_left_alone(tmp_path):
    path, (reader, writer) = tmp_path / "a.json", os.pipe()
    child = os.fork()
    if child == 0:
        with replacing(path) as partial:
            partial.write_text("by the child")
            os.write(writer, b".")
            signal.pause()
    os.read(reader, 1)
    with replacing(path) as partial:
        partial.write_text("by the parent")
    assert len(os.listdir(tmp_path)) == 2 and path.read_text() == "by the parent"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    again = [sys.executable, "-c", "import higgs.files as f, sys; f.write_atomically(sys.argv[1], 'b')"]
    subprocess.run([*again, str(tmp_path / "b")], cwd=ROOT, check=True)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b"]


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with pytest.raises(KeyError) as caught, replacing(path) as partial:
        partial.write_text("half")
        raise KeyError("b")
    assert caught.value.__notes__ == [f"while writing {path}, which is as it was before"]
    assert os.listdir(path.parent) == []
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        pass  # nothing was written
    assert caught.value.filename == str(path)
    (tmp_path / "file").write_text("")
    with pytest.raises((NotADirectoryError, FileExistsError), match="file"):
        save_audio(tmp_path / "file" / "a.wav", noise(100), RATE)


STAGE = """stages:
  generate:
    cmd: python -m higgs.workflow.runner run generate
    deps: [notebooks/generate.ipynb]
    outs: [results/generate, reports/generate.ipynb]
"""
SLOW_CELL = """import os, time
from pathlib import Path
write_json(output_path('results/generate/first.json'), {'first': 1})
if Path('hold').exists():
    output_path('results/generate/half.txt').write_text('hal')
    Path('kernel.new').write_text(str(os.getpid()))
    Path('kernel.new').rename('kernel')
while Path('hold').exists():
    time.sleep(0.05)
write_json(output_path('results/generate/second.json'), {'second': 2})"""


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s: {what}"
        time.sleep(0.05)


def alive(process: int) -> bool:
    """A zombie, which nobody has waited for, is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_killed_stage_leaves_no_outputs_and_starts_again(tmp_path):
    """`dvc repro` and all that it started are killed in the middle of a cell; then it runs to its end."""
    (tmp_path / "dvc.yaml").write_text(STAGE)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "notebooks").mkdir()
    notebook = make_notebook([SLOW_CELL])
    (tmp_path / "notebooks" / "generate.ipynb").write_text(dump(notebook))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run("dvc", "init", "--no-scm", "--quiet", cwd=tmp_path)
    (tmp_path / "hold").touch()
    stage = subprocess.Popen(
        ["dvc", "repro"], cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for((tmp_path / "kernel").exists, "the notebook does not get to its cell")
        os.killpg(stage.pid, signal.SIGKILL)
    finally:
        stage.kill()
        stage.wait()
    kernel = int((tmp_path / "kernel").read_text())
    wait_for(lambda: not alive(kernel), "the kernel of a killed stage goes on")
    assert not (tmp_path / "dvc.lock").exists()
    assert not list((tmp_path / "reports").glob("*")), "half a report"
    assert not list(tmp_path.rglob("*.tmp"))
    assert "generate" in run("dvc", "status", cwd=tmp_path)

    (tmp_path / "hold").unlink()
    subprocess.run(["dvc", "repro"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    results = sorted(path.name for path in (tmp_path / "results" / "generate").iterdir())
    assert [name for name in results if name != "timing.json"] == ["first.json", "second.json"]
    assert (tmp_path / "reports" / "generate.ipynb").is_file()
    assert "up to date" in run("dvc", "status", cwd=tmp_path)
