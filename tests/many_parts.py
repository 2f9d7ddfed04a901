"""Jobs that are large by number, and their memory: `python many_parts.py '["FUNCTION", ...arguments]'`."""

import hashlib
import json
import sys
from pathlib import Path
from typing import ClassVar

from parts_jobs import HashCodec

from higgs.data.corpus import Encode, Item, parts_of
from higgs.data.training.codes import write_index
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Job, Store, run


def resident() -> tuple[float, float]:
    """MB of this process: now, and at most so far (`getrusage` would count what the parent had when it forked)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1e3 for name in ("VmRSS", "VmHWM"))


def driver(count: int, place: str) -> dict:
    """Names `count` made-up parts, puts them into a folder, of holes, lists and indexes them; MB at most."""
    items = [
        Item(f"{n // 1000:05d}/{n:08d}.tar", f"s3://in/{n:08d}.tar", 830_000_000, hashlib.md5(b"%d" % n).hexdigest())
        for n in range(count)
    ]
    parts = list(parts_of(items, "codec", True, target=1))
    del items
    Path(place).mkdir()
    for part in parts:
        record = {"part": part.name, "bytes": 14_400_000, "sha256": part.name * 2, "clips": 3600, "frames": 900_000}
        Path(place, f"{part.name}.json").write_text(json.dumps(record | {"failed": []}))
        with Path(place, f"{part.name}.safetensors").open("wb") as content:
            content.truncate(record["bytes"])
    store = Store(place)
    records = Job(lambda: None, store, Cluster(None, 1)).run(parts)  # none is to do, so nothing is loaded
    found = write_index(store, records, place)
    return {"clips": found["clips"], "peak": resident()[1]}


class Watched(Encode):
    """Notes the memory after each part."""

    seen: ClassVar[list[float]] = []

    def encode(self, codec, items):
        result = super().encode(codec, items)
        self.seen.append(resident()[0])
        return result


def one_process(hours: float, clip: str, place: str, index: str) -> dict:
    """One minute under many names, through one process; MB after the tenth part and after the last."""
    digest, size = hashlib.sha256(Path(clip).read_bytes()).hexdigest(), Path(clip).stat().st_size
    items = [Item(f"{n:06d}.flac", clip, size, digest) for n in range(round(hours * 60))]
    parts = parts_of(items, "stand-in", True, target=10_000_000)
    found = write_index(Store(place), run(Watched(HashCodec, True), parts, Store(place), Cluster(None, 1)), index)
    return {"clips": found["clips"], "parts": len(Watched.seen), "early": Watched.seen[9], "late": Watched.seen[-1]}


if __name__ == "__main__":
    name, *arguments = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(globals()[name](*arguments)))
