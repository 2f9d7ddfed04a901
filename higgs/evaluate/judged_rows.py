"""Judged rows, kept as they come: a run that was cut short goes on where it stopped.

Rows are found again by everything that they depend on: the judges, the words, and the bytes of the
sound and of the references. Another checkpoint's speech under the same name has other rows. Only this
code is not part of it: delete the file after a change of what judges or scores.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from higgs.arithmetic import pinned
from higgs.evaluate.utterances import Listener, Task
from higgs.workers import Workers
from higgs.workflow.tables import Row


class Journal:
    """A file of JSON Lines that only grows; a last line that was cut off is dropped."""

    def __init__(self, path: str | Path) -> None:
        """Reads what is there. Raises ValueError for a broken line that is not the last."""
        self.path = Path(path)
        self._rows: dict[str, list[Row]] = {}
        content = self.path.read_bytes() if self.path.is_file() else b""
        *lines, rest = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                self._rows[entry["key"]] = entry["rows"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}: {error}; delete the file") from error
        if rest:
            with self.path.open("r+b") as file:
                file.truncate(len(content) - len(rest))

    def __len__(self) -> int:
        return len(self._rows)

    def judge_all(self, tasks: Sequence[Task], listener: Listener, workers: Workers) -> Iterator[list[Row]]:
        """The rows of each task, in order. `workers` judge what is not here, with listeners like this one."""
        hashes: dict[Path, str] = {}
        keys = [_key(listener, task, hashes) for task in tasks]
        made = workers.map([t for t, key in zip(tasks, keys, strict=True) if key not in self._rows])
        for key in keys:
            if key not in self._rows:
                self._append(key, next(made))
            yield self._rows[key]

    def _append(self, key: str, rows: list[Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "rows": rows}, ensure_ascii=False) + "\n")
        self._rows[key] = rows


def _key(listener: Listener, task: Task, hashes: dict[Path, str]) -> str:
    """-> sha256 over all that the rows depend on; `hashes` remembers those of files."""

    def content(path: Path | None) -> str | None:
        if path is None or not Path(path).is_file():
            return None
        if path not in hashes:
            hashes[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return hashes[path]

    parts = {
        "judges": listener.panel.names(),
        "listener": [listener.sample_rate, listener.max_seconds, dict(listener.pace)],
        "arithmetic": pinned(),
        "task": [type(task).__name__, asdict(task)],
        "files": [content(path) for path in task.files],
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
