"""The items of a stage, shared by processes of one thread each: `for result in in_order(load, items): ...`

Threads inside an operation wait for each other at every barrier, which on a busy machine costs more than all of the
arithmetic. Processes wait for nobody. A result is a function of its item alone, so their number changes nothing.
"""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
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


def in_order(
    load: Callable[[], Callable[[S], T]], items: Sequence[S], workers: int | None = None
) -> Iterator[T]:
    """As `map(load(), items)`, in so many processes, each of which calls `load` once and computes as this one does.

    None: as many as params.yaml says, or one for each usable core. With one worker, or one item, everything happens in
    this process. `load`, items and results are pickled. An error of an item is raised where its result would come;
    RuntimeError where a process dies.
    """
    wanted = workers or int(os.environ.get(WORKERS, "0")) or usable_cores()
    workers = min(wanted, len(items))
    if workers <= 1:
        yield from map(load(), items) if items else ()
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (load, pinned()))
    try:
        yield from map(pickle.loads, pool.map(_run, items))
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {workers} worker processes died (out of memory?): run again, with fewer `workers`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


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
