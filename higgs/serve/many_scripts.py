"""Many scripts, spoken in batches. A batch is a part of a store, so that a run that was killed goes on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from higgs.arithmetic import pinned
from higgs.config import SamplingConfig
from higgs.data.recordings import subset_by_hash
from higgs.data.scripts import Script
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import CONTENT, Result, Store, digests, make_part, run
from higgs.resumable import code_hash
from higgs.serve.engine import Engine, Response, Usage
from higgs.serve.long_form import LongResponse, speak
from higgs.serve.runaway import RUNAWAY_STOPS

BATCH = 16  # requests that run together
FAILED = "error"
TENSORS = ("waveform", "codes", "delayed")
WITHIN = ("checkpoint/", "codec/", "model/", "data/", "serve/")  # the modules that speech depends on
Task = tuple[Script, int]  # a script and a seed


@dataclass
class Utterance:
    """One sample of a script: its record, the records of its chunks, and the audio, empty where the request failed.

    `waveform` is [L], `codes` [K, T], `delayed` the first segment [K, C]; `resumed` where an earlier run made it.
    """

    record: dict[str, Any]
    waveform: Tensor
    codes: Tensor
    delayed: Tensor
    chunks: list[dict[str, Any]] = field(default_factory=list)
    resumed: bool = False

    @property
    def name(self) -> str:
        return self.record["name"]


def choose_tasks(scripts: Sequence[Script], seeds: Sequence[int], repeated: int | None) -> list[Task]:
    """Every script with the first seed, `repeated` of them (None: all) with the others too, in the scripts' order."""
    chosen = subset_by_hash((script.id for script in scripts), repeated)
    return [(s, seed) for s in scripts for seed in (seeds if s.id in chosen else seeds[:1])]


def batches(tasks: Sequence[Task], max_new_tokens: int) -> list[tuple[int, list[Task]]]:
    """-> (limit, tasks of one batch): a function of the tasks alone. A request with chunks is a batch of its own."""
    groups: dict[int, list[Task]] = {}
    for script, seed in tasks:
        limit = 0 if script.request.chunks else script.request.max_new_tokens or max_new_tokens
        groups.setdefault(limit, []).append((script, seed))
    result = []
    for limit, group in groups.items():
        size = BATCH if limit else 1
        result += [(limit or max_new_tokens, group[i : i + size]) for i in range(0, len(group), size)]
    return result


def speak_all(
    load_engine: Callable[[], Engine],
    tasks: Sequence[Task],
    sampling: SamplingConfig,
    max_new_tokens: int,
    store: Store,
    settings: Mapping[str, Any],
    cluster: Cluster | None = None,
) -> Iterator[Utterance]:
    """Scripts with their seeds -> utterances, batch by batch. `settings` are those of the engine: its weights, device.

    A batch that is in the store is not spoken again. A request that fails is empty, with the reason in `note`.
    """
    job = {
        "sampling": sampling,
        "code": code_hash(str(settings.get("device")), *WITHIN),
        "pinned": pinned(),
        **settings,
    }
    parts = [make_part(job, batch, digests(_files(batch[1]))) for batch in batches(tasks, max_new_tokens)]
    before = store.done(part.name for part in parts)
    for record in run(partial(speaker, load_engine, sampling), parts, store, cluster, "speak"):
        (content,) = store.read([record["part"] + CONTENT])
        tensors = load(content)
        for sample in record["samples"]:
            own = {name: tensors[f"{sample['record']['name']}/{name}"] for name in TENSORS}
            yield Utterance(**sample, **own, resumed=record["part"] in before)


def _files(tasks: Sequence[Task]) -> set[str]:
    """The recordings that requests refer to."""
    return {audio.audio_url for script, _ in tasks for sample in script.request.samples for audio in sample.audios}


def speaker(
    load_engine: Callable[[], Engine], sampling: SamplingConfig
) -> Callable[[tuple[int, Sequence[Task]]], Result]:
    """What a worker loads to speak batches."""
    engine = load_engine()

    def speak_batch(batch: tuple[int, Sequence[Task]]) -> Result:
        limit, tasks = batch
        utterances = _speak(engine, tasks, sampling, limit)
        tensors = {f"{u.name}/{name}": getattr(u, name).clone().contiguous() for u in utterances for name in TENSORS}
        return Result({"samples": [{"record": u.record, "chunks": u.chunks} for u in utterances]}, tensors)

    return speak_batch


def _speak(engine: Engine, tasks: Sequence[Task], sampling: SamplingConfig, limit: int) -> list[Utterance]:
    """A batch; where one of its requests is refused, each by itself, so that the others are spoken."""
    settings = [replace(sampling, seed=seed) for _, seed in tasks]
    try:
        if len(tasks) > 1:
            responses = engine.generate_batch([script.request.samples[0] for script, _ in tasks], settings, limit)
        else:
            request = tasks[0][0].request
            limit = request.max_new_tokens or limit
            responses = [speak(engine, replace(request, sampling=settings[0], max_new_tokens=limit))]
    except (ValueError, OSError) as error:
        if len(tasks) > 1:
            return [utterance for task in tasks for utterance in _speak(engine, [task], sampling, limit)]
        return [_failed(engine, *tasks[0], str(error))]
    return [_utterance(*task, response) for task, response in zip(tasks, responses, strict=True)]


def _utterance(script: Script, seed: int, response: Response) -> Utterance:
    usage, stop = asdict(response.usage), response.stop_reason
    record = script.record(seed)
    if isinstance(response, LongResponse):
        chunks, retries = response.records(record["name"]), sum(chunk.attempts - 1 for chunk in response.chunks)
    else:
        chunks, retries = [], max(0, usage["runaway_stops"] - (stop in RUNAWAY_STOPS))
    record |= usage | {"retries": retries, "stop": stop, "note": ""}
    delayed = response.delayed[0] if response.delayed else torch.zeros(len(response.codes), 0)
    return Utterance(record, response.waveform, response.codes, delayed.long(), chunks)


def _failed(engine: Engine, script: Script, seed: int, note: str) -> Utterance:
    record = script.record(seed) | asdict(Usage(0, 0, 0, 0)) | {"retries": 0, "stop": FAILED, "note": note}
    empty = torch.zeros(engine.tokenizer.num_codebooks, 0, dtype=torch.long)
    return Utterance(record, torch.zeros(0), empty, empty.clone())
