"""Tables of results as files: a list of records with equal keys, in Parquet or JSON Lines by the suffix."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from higgs.files import write_atomically
from higgs.workflow.outputs import columns_of, rounded

Row = dict[str, Any]
SUFFIXES = (".parquet", ".jsonl")
UTTERANCES = "utterances"  # the table of the stage evaluate


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]], digits: int = 9) -> None:
    """Records -> the file, written atomically; floats with `digits` digits, which the order of sums does not change.

    Raises ValueError for no records, unequal keys, NaN or infinity, and an unknown suffix.
    """
    path = _checked(path)
    columns = columns_of(rows, path.name)
    plain = [{c: rounded(row[c], digits, f"{path.name}, row {i}, {c}") for c in columns} for i, row in enumerate(rows)]
    if path.suffix == ".jsonl":
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in plain))
        return
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def read_rows(path: str | Path) -> list[Row]:
    """FileNotFoundError, or ValueError for a file that is not what its suffix says."""
    path = _checked(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        if path.suffix == ".parquet":
            # Not read_table: it would turn folders like `seed=1/` into columns.
            return pyarrow.parquet.ParquetFile(path).read().to_pylist()
        # Not splitlines(): a text may hold other line breaks than the one that ends a record.
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]
    except (pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{path} is no {path.suffix[1:]} table: {error}") from error


def find_table(folder: str | Path, stem: str) -> Path:
    """The table of that name in the folder, whichever suffix it has; FileNotFoundError without one."""
    for path in (Path(folder) / f"{stem}{suffix}" for suffix in SUFFIXES):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} holds no {stem} table ({', '.join(SUFFIXES)})")


def mean_known(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """The mean of a column without its None; None where there is no value."""
    values = [row[column] for row in rows if row[column] is not None]
    return sum(values) / len(values) if values else None


def grouped(rows: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Rows by the value of `key`, in the order of first appearance."""
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: tables are {', '.join(SUFFIXES)}")
    return path
