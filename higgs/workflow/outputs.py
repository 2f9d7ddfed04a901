"""Helpers for notebook cells: the root, progress, players, tables, result files.

A stage (`python -m higgs.workflow.runner run`) writes the tracked outputs; a notebook in JupyterLab or under nbval
writes the same files below results/explore/, which is not tracked.
"""

import base64
import csv
import html
import io
import json
import math
import os
import re
import sys
import wave
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from higgs.files import write_atomically

T = TypeVar("T")

STAGE_VARIABLE = "HIGGS_STAGE"  # set by the runner to the stage's name; not set while exploring
EXPLORE_FOLDER = Path("results/explore")
DIGITS = 6
INTERVAL = re.compile(r"\[-?[\d.]+, -?[\d.]+\]")  # stays on one line of a table
# An output with this type lists audio files, relative to the root: the page embeds them, and its scripts find them
# under their numbers.
SOUNDS = "application/vnd.higgs.sounds+json"


def find_root() -> Path:
    """The nearest folder from the working directory upwards with a dvc.yaml; FileNotFoundError without one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no dvc.yaml in {here} or above it: this is not inside the repository")


def enter_root() -> Path:
    """Makes the repository's root the working directory, and returns it."""
    os.chdir(root := find_root())
    return root


def output_path(path: str | Path) -> Path:
    """`path` in a stage, results/explore/... elsewhere. Creates the folder. ValueError for an absolute path."""
    path = Path(path)
    if path.is_absolute():
        raise ValueError(f"{path}: outputs are named relative to the repository's root")
    if STAGE_VARIABLE not in os.environ:
        path = EXPLORE_FOLDER / (path.relative_to("results") if path.is_relative_to("results") else path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def say(text: str) -> None:
    """A line on stderr, which executed notebooks do not hold: for times and whatever else varies."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """`items` with a bar on stderr, updated every five seconds in a stage."""
    from tqdm import tqdm

    return tqdm(items, desc=label, total=total, mininterval=5 if STAGE_VARIABLE in os.environ else 0.1)


def audio_player(waveform: Any, sample_rate: int, label: str = "", autoplay: bool = False):
    """Float [L], [1, L] or [1, 1, L] -> an <audio> element of clipped 16-bit PCM; ValueError for NaN, other shapes."""
    from IPython.display import HTML

    samples = np.asarray(waveform.detach().cpu() if hasattr(waveform, "detach") else waveform, dtype=np.float64)
    if samples.ndim == 0 or samples.size == 0 or samples.size != samples.shape[-1]:
        raise ValueError(f"expected a waveform of shape [L], [1, L] or [1, 1, L], got {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{label or 'waveform'}: NaN or infinite samples cannot be played")
    pcm = np.round(np.clip(samples.reshape(-1), -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, int(sample_rate), 0, "NONE", ""))
        file.writeframes(pcm.tobytes())
    name, data = html.escape(label), base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = f"<figcaption>{name}</figcaption>" if label else ""
    how = "autoplay" if autoplay else 'preload="metadata"'
    audio = f'<audio controls {how} aria-label="{name}" src="data:audio/wav;base64,{data}"></audio>'
    return HTML(f'<figure class="player">{caption}{audio}</figure>')


def in_script(value: Any) -> str:
    """JSON that may stand in a <script>, whatever the texts in it are: ASCII without <, > and &."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return plain.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def table(rows: Sequence[Mapping[str, Any]], caption: str = "", digits: int = 4):
    """Rows with equal keys -> an HTML table; a cell may be a player or any other HTML object."""
    from IPython.display import HTML

    columns = columns_of(rows)
    head = "".join(f'<th scope="col">{html.escape(str(column))}</th>' for column in columns)
    body = "".join("<tr>" + "".join(_table_cell(row[column], digits) for column in columns) + "</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return HTML(f'<table class="results">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def _table_cell(value: Any, digits: int) -> str:
    if hasattr(value, "_repr_html_"):
        return f"<td>{value._repr_html_()}</td>"
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = "–" if value is None else INTERVAL.sub(lambda found: found[0].replace(" ", "\u00a0"), str(value))
        return f"<td>{html.escape(text)}</td>"
    return f'<td class="number">{value if isinstance(value, int) else f"{value:.{digits}g}"}</td>'


def preformatted(text: str):
    """A text with its line breaks; `print` would write it to the terminal of a stage, too."""
    from IPython.display import HTML

    return HTML(f'<pre style="white-space: pre-wrap">{html.escape(text)}</pre>')


def columns_of(rows: Sequence[Mapping[str, Any]], what: str = "table") -> list[str]:
    """The keys that all rows have; ValueError for no rows or unequal keys."""
    if not rows:
        raise ValueError(f"{what}: at least one row is needed")
    for number, row in enumerate(rows):
        if odd := set(row) ^ set(rows[0]):
            raise ValueError(f"{what}: row {number} and row 0 differ in the columns {', '.join(sorted(odd))}")
    return list(rows[0])


def write_json(path: str | Path, value: Any, digits: int = DIGITS) -> None:
    """Mappings, lists, arrays and scalars as JSON, floats to `digits` digits. ValueError for NaN and infinity."""
    plain = rounded(value, digits, Path(path).name)
    write_atomically(path, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]], digits: int = DIGITS) -> None:
    """Rows with equal keys as CSV, floats to `digits` digits, None as an empty field."""
    columns = columns_of(rows, Path(path).name)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([rounded(row[c], digits, f"row {i}, {c}") for c in columns] for i, row in enumerate(rows))
    write_atomically(path, buffer.getvalue())


def record_timing(stage: str, timing: Mapping[str, Any]) -> None:
    """Adds to results/<stage>/timing.json, which is not tracked, and shows it in the terminal."""
    path = output_path(f"results/{stage}/timing.json")
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**earlier, **timing}, digits=4)
    say(f"{stage}: " + ", ".join(f"{name} {rounded(value, 4, name)}" for name, value in timing.items()))


def rounded(value: Any, digits: int, place: str) -> Any:
    """Plain Python objects, floats to `digits` digits; ValueError for NaN and infinity."""
    value = value.tolist() if hasattr(value, "tolist") else str(value) if isinstance(value, Path) else value
    if isinstance(value, Mapping):
        return {str(key): rounded(entry, digits, f"{place}: {key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry, digits, f"{place}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}: only finite numbers are written; None says not known")
        return float(f"{value:.{digits}g}")
    return value
