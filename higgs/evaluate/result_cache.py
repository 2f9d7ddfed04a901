"""Judged records that survive a kill, keyed by the code, the judges, the task, and the bytes of its files."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from higgs.arithmetic import pinned
from higgs.evaluate.utterances import Evaluator, Task
from higgs.files import sha256
from higgs.resumable import ResultLog, settings_key
from higgs.workers import Workers
from higgs.workflow.tables import Row


class ResultCache:
    """The records of tasks that one evaluator has judged. Files must not change while it is in use."""

    def __init__(self, path: str | Path, evaluator: Evaluator) -> None:
        self.log = ResultLog(path)
        self._settings = {
            "judges": evaluator.metric_models.names(),
            "evaluator": [evaluator.sample_rate, evaluator.max_seconds, dict(evaluator.speaking_rates)],
            "arithmetic": pinned(),
        }
        self._hashes: dict[Path, str] = {}

    def judge_all(self, tasks: Sequence[Task], workers: Workers) -> Iterator[list[Row]]:
        """The records of each task, in order; `workers` judge those that are not in the log."""
        keys = [self._key(task) for task in tasks]
        missing = {key: task for key, task in zip(keys, tasks, strict=True) if key not in self.log}
        results = workers.map(list(missing.values()))
        for key in keys:
            if key not in self.log:
                self.log.append(key, next(results))
            yield self.log[key]

    def _key(self, task: Task) -> str:
        parts = {"task": [type(task).__name__, asdict(task)], "files": [self._hash(path) for path in task.files]}
        return settings_key(self._settings | parts)

    def _hash(self, path: Path | None) -> str | None:
        if path is None or not path.is_file():
            return None
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]
