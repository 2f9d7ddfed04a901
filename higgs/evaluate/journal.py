"""Judged rows, kept as they come: a run that was cut short goes on where it stopped.

A row is found again by everything that it depends on: the judges, the words, and the bytes of the
sound and of the references. Another checkpoint's speech under the same name is another row. Only this
code is not part of it: delete the file after a change of what judges or scores.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from higgs.evaluate.protocols import Listener, Utterance, in_order, once
from higgs.evaluate.tables import Row


class Journal:
    """A file of JSON Lines that only grows; a last line that was cut off is dropped."""

    def __init__(self, path: str | Path) -> None:
        """Reads what is there. Raises ValueError for a broken line that is not the last."""
        self.path = Path(path)
        self._rows: dict[str, Row] = {}
        content = self.path.read_bytes() if self.path.is_file() else b""
        *lines, rest = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                self._rows[entry["key"]] = entry["row"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}: {error}; delete the file") from error
        if rest:
            with self.path.open("r+b") as file:
                file.truncate(len(content) - len(rest))

    def __len__(self) -> int:
        return len(self._rows)

    def judge_all(
        self, listener: Listener, items: Iterable[Utterance], workers: int = 1
    ) -> Iterator[Row]:
        """As `Listener.judge_all`; rows that are here are not judged again."""
        hashes: dict[Path, str] = {}

        def judged(pair: tuple[Utterance, bool]) -> tuple[str, Row]:
            key = _key(listener, *pair, hashes)
            return key, self._rows.get(key) or listener.judge_once(*pair)

        for key, row in in_order(judged, once(items), workers):
            if key not in self._rows:
                self._append(key, row)
            yield row

    def _append(self, key: str, row: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "row": row}, ensure_ascii=False) + "\n")
        self._rows[key] = row


def _key(listener: Listener, item: Utterance, fresh: bool, hashes: dict[Path, str]) -> str:
    """-> sha256 over all that the row depends on; `hashes` remembers those of files."""

    def content(path: Path | None) -> str | None:
        if path is None or not Path(path).is_file():
            return None
        if path not in hashes:
            hashes[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return hashes[path]

    parts = {
        "judges": listener.panel.names(),
        "listener": [listener.sample_rate, listener.max_seconds, dict(listener.pace)],
        "item": asdict(item),
        "fresh": fresh,
        "files": [content(path) for path in (item.path, item.reference, *item.others)],
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
