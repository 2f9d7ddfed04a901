"""Judged records in parts of a store, named by the code, the judges, the tasks, and the bytes of their files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from higgs.arithmetic import pinned
from higgs.evaluate.utterances import Evaluator, Task
from higgs.jobs.cluster import Cluster
from higgs.jobs.parts import Job, Part, Result, Store, cut, digests, make_part
from higgs.resumable import code_hash
from higgs.workflow.tables import Row

TASKS = 16  # of a part
WITHIN = ("data/", "evaluate/")  # the modules that records depend on


class ResultCache:
    """What `load` loads judges tasks; workers load it, too. Files must not change while it is in use."""

    def __init__(self, load: Callable[[], Evaluator], store: Store, workers: int | None = None) -> None:
        evaluator = load()
        cluster = Cluster.of_environment("auto" if evaluator.metric_models.on_accelerator else None)
        cluster = replace(cluster, workers=workers or cluster.workers)
        self.job = Job(partial(judge_parts, load), store, cluster)
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


def judge_parts(load: Callable[[], Evaluator]) -> Callable[[Sequence[Task]], Result]:
    evaluator = load()
    return lambda tasks: Result({"records": [evaluator(task) for task in tasks]})
