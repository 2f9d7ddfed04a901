"""A process pool for the items of a stage: `for result in in_order(load, items): ...`

Processes have one thread each: on a busy machine barriers between threads cost more than the arithmetic. A result is a
function of its item alone, so the number of processes changes nothing.
"""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from higgs.arithmetic import pinned, set_arithmetic

S, T = TypeVar("S"), TypeVar("T")
# Set by the runner: as parameters of the notebook they would change the page.
WORKERS, CLUSTER, WORK, DEVICE = "HIGGS_WORKERS", "HIGGS_CLUSTER", "HIGGS_WORK", "HIGGS_DEVICE"
_function: Callable[[Any], Any]  # in a worker: item -> result


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The processors of this process by its affinity and its container's quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if quota.is_file():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, int(limit) // int(period))
    return max(1, cores)


def choose_device(name: str = "auto") -> Any:
    """-> `torch.device`; "auto" is this machine's accelerator, or the CPU where it has none or HIGGS_DEVICE is cpu."""
    import torch

    if name == "auto" and os.environ.get(DEVICE) != "cpu":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return torch.device("cpu" if name == "auto" else name)


class Workers:
    """`count` processes, or HIGGS_WORKERS, or one for each usable core; a single worker is this process itself.

    `load` is called once in each and returns a function of an item. Processes have this one's arithmetic and end with
    it, or with `close`. `load`, items and results are pickled.
    """

    def __init__(self, load: Callable[[], Callable[[Any], Any]], count: int | None = None):
        self.load = load
        self.count = count or int(os.environ.get(WORKERS, "0")) or usable_cores()
        self._function: Callable[[Any], Any] | None = None
        self._pool: ProcessPoolExecutor | None = None

    def map(self, items: Sequence[Any]) -> Iterator[Any]:
        """-> results, in order; an error of an item or of `load` is raised in place of its result, RuntimeError where a
        process dies.
        """
        if not items:
            return
        if self.count == 1:
            self._function = self._function or self.load()
            yield from map(self._function, items)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, context, _start, (self.load, pinned()))
        try:
            yield from map(pickle.loads, self._pool.map(_run, items))
        except BrokenProcessPool as error:
            died = f"one of {self.count} worker processes died (out of memory?)"
            raise RuntimeError(f"{died}: run again, with fewer `workers`") from error

    def close(self) -> None:
        """Ends the processes; items that have not started are dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def in_order(load: Callable[[], Callable[[S], T]], items: Sequence[S], count: int | None = None) -> Iterator[T]:
    """`Workers(load, count).map(items)`, then closes them."""
    with closing(Workers(load, count if len(items) > 1 else 1)) as workers:
        yield from workers.map(items)


def _start(load: Callable[[], Callable[[Any], Any]], repeatable: bool) -> None:
    global _function
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    set_arithmetic(repeatable)
    try:
        _function = load()
    except Exception as error:  # here it would end the pool without saying what it was
        _function = partial(_fail, error)


def _fail(error: Exception, _: Any) -> None:
    raise error


def _exit_with_parent() -> None:
    """Workers of a killed parent would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run(item: Any) -> bytes:
    """Pickled here: multiprocessing would send tensors through shared memory, of which a container has little."""
    return pickle.dumps(_function(item))
