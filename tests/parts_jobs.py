"""A stand-in codec, corpora of noise, and a driver: `python parts_jobs.py JOB.json` makes the parts of a corpus."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tarfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from higgs.data.corpus import Encode, list_corpus, parts_of
from higgs.data.training.codes import write_index
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Store, run
from higgs.workflow.runner import run_stage

ROOT = Path(__file__).resolve().parent.parent

RATE = 8000
POISON = 1234  # samples of a clip that kills its worker


@dataclass
class HashCodec:
    """8 codes for each 960 samples: a hash of them. Sleeps for each list of clips."""

    seconds: float = 0.0
    sample_rate = RATE

    def encode(self, clips, pad_to_hop):
        time.sleep(self.seconds)
        if any(len(clip) == POISON for clip in clips):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(len(clip) < 100 for clip in clips):
            raise ValueError("too short to encode")
        return [self.codes(clip.numpy().tobytes(), -(-len(clip) // 960)) for clip in clips]

    def codes(self, content: bytes, frames: int) -> torch.Tensor:
        digest = hashlib.shake_256(content).digest(8 * frames)
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8).long().reshape(8, frames)


def noise(number: int, samples: int) -> bytes:
    """A FLAC file, another for each number."""
    buffer = io.BytesIO()
    sound = np.random.default_rng(number).uniform(-0.1, 0.1, samples)
    soundfile.write(buffer, sound, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def corpus(clips: int, broken: bool = True) -> dict[str, bytes]:
    """Names -> contents: loose clips and a tar of five; where `broken`, one of each kind of fault."""
    files = {f"clips/{n:03d}.flac": noise(n, 1500 + 37 * n) for n in range(clips)}
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for number in range(5):
            content = noise(1000 + number, 2000)
            entry = tarfile.TarInfo(f"in/{number}.flac")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    files["pack.tar"] = tar.getvalue()
    if broken:
        whole = noise(77, 3000)
        files |= {"bad/cut.flac": whole[: len(whole) // 2], "bad/noise.flac": b"\x07" * 900, "bad/empty.flac": b""}
        files |= {"bad/short.flac": noise(78, 50), "bad/torn.tar": tar.getvalue()[:3000], "notes.txt": b"no speech"}
    return files


def make_index(source: str, place: str, folder: str | Path, cluster: Cluster | None = None, **job) -> dict:
    """Tokenizes `source` into `place` -> counts; the index is in `folder`."""
    items = list(list_corpus(source))
    parts = parts_of(items, "stand-in", True, target=job.get("target", 6000))
    encode = Encode(partial(HashCodec, job.get("seconds", 0.0)), True)
    store = Store(place)
    return write_index(store, run(encode, parts, store, cluster or Cluster(None, 1)), folder)


def run_tokenize(folder: Path, **places: str) -> dict[str, bytes]:
    """Runs the notebook of the stage, in one process, on a listing of a clip and a tar of two, one of them left out.

    `places` are keys at the top of params.yaml. -> the files that it has written, by path.
    """
    (folder / "in").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    clips = sorted((ROOT / "data/recordings/it").iterdir(), key=lambda path: path.stat().st_size)[:3]
    shutil.copy(clips[0], folder / "in/a b.flac")
    with tarfile.open(folder / "in/pack.tar", "w") as archive:
        for number, clip in enumerate(clips[1:]):
            archive.add(clip, f"x/{number}.flac")
    shutil.copytree(ROOT / "data/checkpoints/nano", folder / "data/checkpoints/nano")
    for name in ("dvc.yaml", "notebooks/tokenize.ipynb"):
        shutil.copy(ROOT / name, folder / name)
    params = (ROOT / "params.yaml").read_text()
    for name, value in ({"workers": 1} | places).items():
        params = re.sub(rf"^{name}: null", f"{name}: {value}", params, flags=re.MULTILINE)
    (folder / "params.yaml").write_text(params)
    settings = {"recordings": "corpus.jsonl", "codebook_counts": "[8]", "players": "1", "skip": "[pack.tar/x/0.flac]"}
    with contextlib.chdir(folder):
        Path("corpus.jsonl").write_text("".join(json.dumps(i._asdict()) + "\n" for i in list_corpus("in")))
        run_stage("tokenize", Path("params.yaml"), [f"tokenize.{k}={v}" for k, v in settings.items()], Path("reports"))
        assert not Path("results/partial").exists() or not list(Path("results/partial").iterdir())
    made = [path for path in (folder / "results").rglob("*") if path.is_file() and path.name != "timing.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in made}


def contents(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    where = job.pop("cluster")
    print(json.dumps(make_index(cluster=Cluster(where, job.pop("workers")) if where else Cluster(None, 1), **job)))
