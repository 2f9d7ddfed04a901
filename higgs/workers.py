"""The items of a stage, shared by processes of one thread each: `for result in in_order(load, items): ...`

Threads inside an operation wait for each other at every barrier, which on a busy machine costs more than all of the
arithmetic. Processes wait for nobody. A result is a function of its item alone, so their number changes nothing.
"""

import hashlib
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from higgs.arithmetic import pinned, set_arithmetic

S, T = TypeVar("S"), TypeVar("T")
WORKERS = "HIGGS_WORKERS"
"""The variable by which the runner says how many there are: no parameter of a notebook, whose page would change."""

_make: Callable[[Any], Any]  # what this worker does with an item


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many processors this process may use: those it is bound to, and a container's share of them; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, int(limit) // int(period))
    return max(1, cores)


class Workers:
    """Processes that stay: `load` is called once in each, and what it returns maps an item to its result.

    As many as params.yaml says, or one for each usable core. They start with the first items, compute as this process
    does, and end with it, or with `close`. A single worker is this process itself. `load`, items and results are
    pickled.
    """

    def __init__(self, load: Callable[[], Callable[[Any], Any]], count: int | None = None):
        self.load = load
        self.count = count or int(os.environ.get(WORKERS, "0")) or usable_cores()
        self._make: Callable[[Any], Any] | None = None
        self._pool: ProcessPoolExecutor | None = None

    def map(self, items: Sequence[Any]) -> Iterator[Any]:
        """-> the results, in the items' order. An item's error is raised where its result would come.

        Raises RuntimeError where a process dies.
        """
        if not items:
            return
        if self.count == 1:
            self._make = self._make or self.load()
            yield from map(self._make, items)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, context, _start, (self.load, pinned()))
        try:
            yield from map(pickle.loads, self._pool.map(_run, items))
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {self.count} worker processes died (out of memory?): run again, with fewer `workers`"
            ) from error

    def close(self) -> None:
        """Ends the processes; what they have not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def in_order(load: Callable[[], Callable[[S], T]], items: Sequence[S], count: int | None = None) -> Iterator[T]:
    """`Workers(load, count).map(items)`, by workers that end with it."""
    workers = Workers(load, count if len(items) > 1 else 1)
    try:
        yield from workers.map(items)
    finally:
        workers.close()


def _start(load: Callable[[], Callable[[S], T]], repeatable: bool) -> None:
    """In each worker, before its first item."""
    global _make
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_arithmetic(repeatable)
    _make = load()


def _end_with_parent() -> None:
    """A parent that was killed cannot say so, and its workers would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(item: Any) -> bytes:
    """Pickled here: multiprocessing would send tensors through shared memory, of which a container has little."""
    return pickle.dumps(_make(item))


def some_of(ids: Iterable[str], count: int | None) -> set[str]:
    """`count` of the ids (None: all), chosen by their hashes: another order or one more script changes little."""

    def by_hash(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    return set(sorted(set(ids), key=by_hash)[:count])
