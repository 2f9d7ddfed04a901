"""Parts on Ray: a pool of actors. A part belongs to the driver, so it goes to whoever lives when its worker dies.

Ray's own retries are off: with them a part belongs to an actor that may wait for ever for a place.
"""

import contextlib
import os
import re
import secrets
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs.arithmetic import environment, pinned, set_arithmetic
from higgs.resumable import code_hash
from higgs.workers import CLUSTER, DEVICE, WORK, WORKERS, choose_device, usable_cores

DEATHS = 3  # of a part's workers, and of workers in a row before one result
# What workers of a running cluster get of the driver's environment: no keys, which Ray's state would show.
SENT = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION", "HIGGS_CACHE", "HF_HOME", "HF_ENDPOINT")
# Of the code sent. Ray would leave out what .gitignore names, too, and that is all of data/.
EXCLUDED = [".git", ".dvc", ".dvc-store", ".venv", "results", "reports", "tests", "training/out"]
EXCLUDED += [".hypothesis", ".pytest_cache", ".ruff_cache", "*.egg-info", "__pycache__"]


@dataclass(frozen=True)
class Cluster:
    """Where parts are made: in processes of this machine (`address` None), on Ray on this machine (`local`), in the
    cluster that this machine is in (`auto`), or by HOST:PORT. `workers` None: as many as there is room for now.
    """

    address: str | None = None
    workers: int | None = None
    device: str = "cpu"  # or cuda, or cuda:H100 (Ray's name of the type): of workers, and in the names of parts
    gpus: float = 1  # of a worker on such a device
    weights: tuple[str, ...] = ()  # checkpoints that must be the same everywhere

    @classmethod
    def of_environment(cls, own: str | None = None, weights: Sequence[str] = (), gpus: float = 1) -> "Cluster":
        """What the runner has set. `own`: see `declared`; None for what runs on the CPU, whatever is declared."""
        workers = int(os.environ.get(WORKERS, "0")) or None
        device = "cpu" if own is None else declared(os.environ.get(DEVICE), own, os.environ.get(WORK))
        return cls(os.environ.get(CLUSTER) or None, workers, device, gpus, tuple(weights))

    @property
    def kind(self) -> str:
        """Of the device, as PyTorch puts it."""
        return self.device.partition(":")[0]

    @property
    def here(self) -> str:
        """What this process loads for itself: on the same kind of device if it has one, else on the CPU."""
        return self.kind if self.kind == choose_device().type else "cpu"

    @property
    def processes(self) -> int | None:
        """Without Ray: an accelerator serves one."""
        return self.workers if self.device == "cpu" else 1

    @property
    def needs(self) -> dict[str, Any]:
        """Of a worker, as Ray puts it."""
        gpus = 0 if self.kind == "cpu" else self.gpus
        return {"num_cpus": 1, "num_gpus": gpus, "accelerator_type": self.device.partition(":")[2] or None}


def declared(device: str | None, own: str, work: str | None) -> str:
    """`device` of params.yaml; null is the checkpoint's `own`, and there `auto` is what this machine has.

    Raises ValueError for `auto` where parts lie in a bucket: another machine would look for other names.
    """
    if device or own != "auto":
        return device or own
    if work:
        raise ValueError(f"device: say cpu, cuda or cuda:TYPE, as {work} is shared with machines that may have others")
    return choose_device().type


def check_device(device: str) -> None:
    """Raises ValueError unless this machine has it."""
    kind, _, wanted = device.partition(":")
    if kind != "cuda":
        return
    import torch

    found = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "no GPU"
    if found == "no GPU" or re.sub(r"-\d+G$", "", wanted) not in found:  # A100-40G is called NVIDIA A100-SXM4-40GB
        raise ValueError(f"device {device}: there is {found} here; name another device, or a `cluster` that has it")


def connect(cluster: Cluster) -> Any:
    """-> ray, connected. Raises ConnectionError where no cluster answers."""
    is_local = cluster.address == "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_local:  # Ray would write a token into the home folder, and listen on all addresses of the machine
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # those would have another environment
    try:
        import ray
    except ImportError as error:
        raise ImportError('`cluster` needs Ray: pip install -c constraints.txt "higgs[cluster]"') from error
    if ray.is_initialized():
        return ray
    how: dict[str, Any] = {"address": cluster.address, "log_to_driver": False, "configure_logging": False}
    if is_local:
        how |= {"num_cpus": usable_cores(), "_node_ip_address": "127.0.0.1", "include_dashboard": False}
        how["object_store_memory"] = 100 * 1024**2  # parts and records are small
    elif "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # else `ray job submit` has sent the code
        os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
        how["runtime_env"] = {"working_dir": str(Path.cwd()), "excludes": EXCLUDED}
    for attempt in (1, 2):  # on a busy machine Ray's own processes may miss their 15 seconds
        try:
            ray.init(**how)
            return ray
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                raise ConnectionError(f"cluster {cluster.address}: Ray does not answer ({error})") from error


def disconnect(cluster: Cluster) -> None:
    """Ends the processes of Ray that were started for this one."""
    if cluster.address == "local" and "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def identity(weights: Sequence[str]) -> list[str]:
    """Of what a worker and its driver must have in common."""
    from higgs.checkpoint.resolve import fingerprint

    return [code_hash("any"), *map(fingerprint, weights)]


class Worker:
    """An actor: loads on its first call, so that errors in loading come back as they are."""

    def __init__(self, repeatable: bool) -> None:
        set_arithmetic(repeatable)

    def start(self, load: Callable[[], Callable], store: Any, folder: str | None, weights: Sequence[str]) -> list[str]:
        if folder is not None:
            os.chdir(folder)
        self.store, self.function = store, load()
        return identity(weights)

    def run(self, part: Any) -> Any:
        if not (self.store.remote and part.files):
            return self.function(part)
        # Nothing of the working directory that was sent is overwritten, and a disk holds the files of one part.
        with tempfile.TemporaryDirectory(prefix="higgs-") as scratch, contextlib.chdir(scratch):
            self.store.fetch(part)
            return self.function(part)


class Pool:
    """Actors that load `load` once each. What runs is a dictionary: the answer awaited -> (actor, part), part None for
    an actor that starts.
    """

    def __init__(self, ray: Any, load: Callable[[], Callable], store: Any, cluster: Cluster) -> None:
        variables = environment(pinned()) | {name: os.environ[name] for name in SENT if name in os.environ}
        variables[DEVICE] = cluster.device
        options = {"max_restarts": 0, "max_task_retries": 0, "runtime_env": {"env_vars": variables}} | cluster.needs
        self.ray, self.actor = ray, ray.remote(Worker).options(**options)
        # Elsewhere the working directory is the code that was sent.
        folder = os.getcwd() if cluster.address == "local" else None
        self.start, self.same = (ray.put(load), store, folder, cluster.weights), identity(cluster.weights)
        room, gpus = ray.cluster_resources(), options["num_gpus"]
        self.count = max(1, cluster.workers or int(room.get("GPU", 0) / gpus if gpus else room["CPU"]))
        self.running: dict[Any, tuple[Any, Any]] = {}
        self.died_at_start = 0

    def hire(self) -> None:
        actor = self.actor.remote(pinned())
        self.running[actor.start.remote(*self.start)] = (actor, None)

    def send(self, actor: Any, part: Any) -> None:
        self.running[actor.run.remote(part)] = (actor, part)

    def next(self) -> tuple[Any, Any, Any, Exception | None]:
        """Waits for an answer -> actor, part, result, or the error of a worker or node that is lost. Raises what a
        worker raised.
        """
        from ray.exceptions import RayError, RayTaskError

        (ready,), _ = self.ray.wait(list(self.running), num_returns=1)
        actor, part = self.running.pop(ready)
        try:
            result = self.ray.get(ready)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, OSError | ValueError) else error from None
        except RayError as error:
            self.died_at_start += part is None
            if self.died_at_start == DEATHS:
                raise RuntimeError(f"{DEATHS} workers in a row died before they were ready: {error}") from error
            return actor, part, None, error
        if part is None:
            self.died_at_start = 0
            if result != self.same:
                what = "weights" if result[0] == self.same[0] else "code, libraries or kernels"
                raise RuntimeError(f"a worker has other {what} than this process: use one image everywhere")
        return actor, part, result, None

    def close(self) -> None:
        for actor, _ in self.running.values():
            self.ray.kill(actor)


def make_on_ray(
    load: Callable[[], Callable], parts: Sequence[Any], store: Any, cluster: Cluster
) -> Iterator[tuple[Any, Any, str | None]]:
    """Makes parts in any order -> (part, result, None), or (part, None, reason) of one that killed three workers.

    An error that a worker raises stops the job; what is done stays done.
    """
    if not parts:
        return
    if not store.remote and cluster.address != "local":
        raise ValueError(f"cluster {cluster.address}: results go to s3://BUCKET/PREFIX, which all machines reach")
    pool = Pool(connect(cluster), load, store, cluster)
    if store.remote:
        store.share(parts)
    todo, deaths = deque(parts), Counter()
    for _ in range(min(pool.count, len(parts))):
        pool.hire()
    try:
        while todo or any(part for _, part in pool.running.values()):
            actor, part, result, error = pool.next()
            if part is not None and error is None:
                yield part, result, None
            elif part is not None:
                deaths[part.name] += 1
                if deaths[part.name] < DEATHS:
                    todo.append(part)
                else:
                    yield part, None, f"its worker died {DEATHS} times"
            if todo and error is None:
                pool.send(actor, todo.popleft())
            elif todo:
                pool.hire()
            del actor  # with its handle goes the actor, and its place is free for one that waits
    finally:
        pool.close()
