"""Many requests, spoken together; each is kept as soon as it is there, so that a run that was killed goes on.

What is kept lies in a folder of its own for each set of settings: another checkpoint, another temperature or another
text begins anew.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from higgs.config import SamplingConfig
from higgs.data.scripts import Script
from higgs.files import replacing
from higgs.serve.engine import Engine, Response, Usage
from higgs.serve.guards import GUARD_STOPS
from higgs.serve.long_form import LongResponse, speak_script
from higgs.workers import in_order, some_of

BATCH = 16  # requests that run together
FAILED = "error"
Request = tuple[Script, int]


@dataclass
class Spoken:
    """One take of a script: its row, the borders of its chunks, and what was made. Nothing spoken: both empty.

    `waveform` is [L], `codes` [K, T], `delayed` the first segment [K, C]; `fresh` is False where it was kept from
    an earlier run.
    """

    row: dict[str, Any]
    waveform: Tensor
    codes: Tensor
    delayed: Tensor
    chunks: list[dict[str, Any]] = field(default_factory=list)
    fresh: bool = True

    @property
    def name(self) -> str:
        return self.row["name"]


def content_hash(files: Sequence[Path]) -> str:
    """Files -> a hash of their names and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def choose_requests(scripts: Sequence[Script], seeds: Sequence[int], repeated: int | None) -> list[Request]:
    """Every script with the first seed, `repeated` of them (None: all) with the others too, in the scripts' order."""
    chosen = some_of((script.id for script in scripts), repeated)
    return [(s, seed) for s in scripts for seed in (seeds if s.id in chosen else seeds[:1])]


def batches(requests: Sequence[Request], max_new_tokens: int) -> list[tuple[int, list[Request]]]:
    """-> (limit, requests that are spoken together): a function of the requests alone. What has chunks is by itself."""
    groups: dict[int, list[Request]] = {}
    for script, seed in requests:
        limit = 0 if script.chunks else script.max_new_tokens or max_new_tokens
        groups.setdefault(limit, []).append((script, seed))
    return [
        (limit or max_new_tokens, group[start : start + (BATCH if limit else 1)])
        for limit, group in groups.items()
        for start in range(0, len(group), BATCH if limit else 1)
    ]


def speak_all(
    load_engine: Callable[[], Engine],
    requests: Sequence[Request],
    sampling: SamplingConfig,
    max_new_tokens: int,
    folder: str | Path,
    workers: int | None = None,
) -> Iterator[Spoken]:
    """Scripts with their seeds -> their takes, batch by batch, by `workers` as in `in_order`, with an engine each.

    A batch whose takes all lie in `folder` is not spoken again. A request that cannot be spoken becomes an empty take
    that says why in `note`.
    """
    folder, todo = Path(folder), []
    for limit, batch in batches(requests, max_new_tokens):
        kept = [read_take(_file(folder, script, seed)) for script, seed in batch]
        if None in kept:
            todo.append((limit, batch))
        else:
            yield from kept
    load = partial(_speaker, load_engine, sampling, folder)
    for made in in_order(load, todo, workers):
        yield from made


def _file(folder: Path, script: Script, seed: int) -> Path:
    return folder / f"{script.row(seed)['name']}.safetensors"


def _speaker(
    load_engine: Callable[[], Engine], sampling: SamplingConfig, folder: Path
) -> Callable[[tuple[int, list[Request]]], list[Spoken]]:
    """What a process does with a batch: speak it, and keep its takes."""
    engine = load_engine()

    def speak(batch: tuple[int, list[Request]]) -> list[Spoken]:
        limit, requests = batch
        made = _speak(engine, requests, sampling, limit)
        for (script, seed), spoken in zip(requests, made, strict=True):
            write_take(_file(folder, script, seed), spoken)
        return made

    return speak


def _speak(engine: Engine, requests: Sequence[Request], sampling: SamplingConfig, limit: int) -> list[Spoken]:
    """Several together; where one of them is refused, one by one, so that the others are spoken."""
    drawn = [replace(sampling, seed=seed) for _, seed in requests]
    try:
        if len(requests) > 1:
            samples = [script.sample for script, _ in requests]
            made = engine.generate_batch(samples, drawn, limit)
        else:
            made = [speak_script(engine, requests[0][0], drawn[0], limit)]
    except (ValueError, OSError) as error:
        if len(requests) > 1:
            return [t for request in requests for t in _speak(engine, [request], sampling, limit)]
        return [_failed(engine, *requests[0], str(error))]
    return [_take(*request, response) for request, response in zip(requests, made, strict=True)]


def _take(script: Script, seed: int, response: Response) -> Spoken:
    usage, stop = asdict(response.usage), response.stop_reason
    long = isinstance(response, LongResponse)
    retries = (
        sum(chunk.attempts - 1 for chunk in response.chunks)
        if long
        else max(0, usage["guard_stops"] - (stop in GUARD_STOPS))
    )
    row = script.row(seed) | usage | {"retries": retries, "stop": stop, "note": ""}
    delayed = response.delayed[0] if response.delayed else torch.zeros(len(response.codes), 0)
    chunks = response.rows(row["name"]) if long else []
    return Spoken(row, response.waveform, response.codes, delayed.long(), chunks)


def _failed(engine: Engine, script: Script, seed: int, note: str) -> Spoken:
    row = script.row(seed) | asdict(Usage(0, 0, 0, 0))
    empty = torch.zeros(engine.tokenizer.num_codebooks, 0, dtype=torch.long)
    return Spoken(row | {"retries": 0, "stop": FAILED, "note": note}, torch.zeros(0), empty, empty.clone())


def write_take(path: Path, spoken: Spoken) -> None:
    """Whole or not at all."""
    tensors = {name: getattr(spoken, name).contiguous() for name in ("waveform", "codes", "delayed")}
    said = json.dumps({"row": spoken.row, "chunks": spoken.chunks})
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"take": said})


def read_take(path: Path) -> Spoken | None:
    """What `write_take` wrote; None where there is nothing, or nothing whole."""
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads(file.metadata()["take"])
            tensors = {name: file.get_tensor(name) for name in ("waveform", "codes", "delayed")}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return Spoken(said["row"], **tensors, chunks=said["chunks"], fresh=False)
