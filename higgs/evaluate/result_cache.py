"""Judged records in parts of a store, named by the code, the judges, the tasks, and the bytes of their files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from higgs.arithmetic import pinned
from higgs.evaluate.utterances import Evaluator, Task
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Job, Part, Result, Store, cut, digests, make_part
from higgs.resumable import code_hash
from higgs.workflow.tables import Row

TASKS = 16  # of a part
WITHIN = ("data/", "evaluate/")  # the modules that records depend on


@dataclass(frozen=True)
class Judging:
    """What a worker loads: in this process its own `evaluator`, which is not sent, so that others load one each."""

    load: Callable[[], Evaluator]
    evaluator: Evaluator | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Judging, (self.load,)

    def __call__(self) -> Callable[[Sequence[Task]], Result]:
        evaluator = self.evaluator or self.load()
        return lambda tasks: Result({"records": [evaluator(task) for task in tasks]})


class ResultCache:
    """What `load` loads judges tasks, one in each process. Files must not change while it is in use.

    This process loads it too: which judges can be loaded, and the hashes of their weights, are in the names of parts.
    """

    def __init__(self, load: Callable[[], Evaluator], store: Store, workers: int | None = None) -> None:
        self.evaluator = evaluator = load()
        cluster = Cluster.of_environment("auto" if evaluator.metric_models.on_accelerator else None)
        cluster = replace(cluster, workers=workers or cluster.workers)
        self.job = Job(Judging(load, evaluator), store, cluster)
        self._settings = {
            "code": code_hash(cluster.device, *WITHIN),
            "judges": evaluator.metric_models.names(),
            "evaluator": [evaluator.sample_rate, evaluator.max_seconds, dict(evaluator.speaking_rates)],
            "arithmetic": pinned(),
        }
        self._hashes: dict[str, str] = {}

    def judge_all(self, tasks: Sequence[Task], label: str | None = "judge") -> Iterator[list[Row]]:
        """The records of each task, in order; workers judge the parts that are not in the store."""
        groups = cut(tasks, TASKS, lambda task: make_part(None, [task]).name, lambda _: 1)
        for record in self.job.run([self._part(group) for group in groups], label):
            yield from record["records"]

    def _part(self, tasks: Sequence[Task]) -> Part:
        paths = {str(path) for task in tasks for path in task.files if path is not None}
        self._hashes |= digests(paths.difference(self._hashes))
        return make_part(self._settings, tasks, {path: self._hashes[path] for path in paths if path in self._hashes})

    def close(self) -> None:
        self.job.close()
