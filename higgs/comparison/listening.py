"""A blind listening test: which sounds, in which order, on one page; and the key, which says what was what.

Two runs: which of two is better, in five steps. More, or by choice: each sound from 0 to 100 (after MUSHRA, ITU-R
BS.1534), with a hidden recording and the same through the codec as anchor. Order and sides follow from the seed.
"""

import base64
import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs.audio import compress, load_audio
from higgs.comparison.many import MOST_RUNS, shared_samples
from higgs.comparison.runs import Run
from higgs.data.loudness import speech_level
from higgs.evaluate.report.gather import RECONSTRUCTED, RECORDED
from higgs.evaluate.statistics.paired_runs import scored_rows
from higgs.files import sha256
from higgs.workflow.page import Extra, bare_page
from higgs.workflow.tables import Row

PREFERENCE, SCORES = "preference", "scores"
RECORDING, CODEC = "recording", "codec"
KEY_FORMAT, FORMAT = "higgs-listening-key-1", "higgs-ratings-1"
LEVEL_DBFS, PEAK = -26.0, 0.98
KBIT = 64
TRAINING = 2
MOST_TEXTS = 200
MOST_BYTES = 24_000_000
FILES = tuple(Path(__file__).parent / "assets" / name for name in ("page.css", "player.js", "listen.js"))
QUESTION = "A blind listening test, to be sent to listeners."


@dataclass(frozen=True)
class Stimulus:
    """A sound and whose it is: the number of a run, "recording" or "codec"."""

    system: int | str
    file: Path


@dataclass(frozen=True)
class Trial:
    """What is judged together. Of a run's rows, those of this text and seed."""

    row: Row
    stimuli: list[Stimulus]


def design(runs: Sequence[Run], kind: str, texts: int, seed: int, group: str) -> tuple[list[Trial], list[Trial]]:
    """-> the trials in their order, and those for training, of texts that are not in the test as far as there are any.

    Texts are drawn among those that all runs have with sound, and not the same bytes in all. ValueError without any.
    """
    if not 2 <= len(runs) <= MOST_RUNS or (kind == PREFERENCE and len(runs) > 2):
        raise ValueError(f"a listening test has 2 to {MOST_RUNS} runs, and two for a preference, got {len(runs)}")
    tables = [run.rows() for run in runs]
    found, alike = [], 0
    for samples in shared_samples([scored_rows(table, group) for table in tables]).values():
        files = [run.audio(row) for run, row in zip(runs, samples[0], strict=True)]
        if all(files):
            if len({sha256(file) for file in files}) == 1:
                alike += 1
            else:
                found.append((samples[0][0], [Stimulus(place, file) for place, file in enumerate(files)]))
    if not found:
        what = f"all {alike} texts are the same sound in all runs" if alike else "no text has sound in all runs"
        raise ValueError(f"{' and '.join(run.name for run in runs)}: {what}; there is nothing to listen to")
    chance = random.Random(seed)
    chance.shuffle(found)
    anchors = _anchors(runs[0], tables[0]) if kind == SCORES else []
    chance.shuffle(anchors)
    chosen, rest = found[:texts], found[texts : texts + TRAINING] or found[:TRAINING]
    first = [place % 2 for place in range(len(chosen))]
    chance.shuffle(first)
    trials = []
    for place, (row, stimuli) in enumerate([*chosen, *rest]):
        more = anchors[place % len(anchors)] if anchors else []
        stimuli = [*stimuli, *more]
        if kind == SCORES:
            chance.shuffle(stimuli)
        elif place < len(first) and first[place]:
            stimuli.reverse()
        trials.append(Trial(row, stimuli))
    return trials[: len(chosen)], trials[len(chosen) :]


def _anchors(run: Run, table: Sequence[Row]) -> list[list[Stimulus]]:
    """Pairs of a human recording and the same through the codec. They speak texts of their own."""
    pairs: dict[str, dict[str, Path]] = {}
    for row in table:
        name = {RECORDED: RECORDING, RECONSTRUCTED: CODEC}.get(row["group"])
        if name and (file := run.audio(row)):
            pairs.setdefault(row["script"], {})[name] = file
    return [[Stimulus(name, file) for name, file in sorted(pair.items())] for pair in pairs.values() if len(pair) == 2]


def matched(waveforms: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Waveforms -> the same at one level of speech: -26 dBFS, or less where one would be clipped. Silence stays."""
    levels = [speech_level(waveform, rate) for waveform, rate in waveforms]
    peaks = [waveform.abs().max().item() for waveform, _ in waveforms]
    spare = [20 * math.log10(PEAK / p) + level for level, p in zip(levels, peaks, strict=True) if math.isfinite(level)]
    target = min([LEVEL_DBFS, *spare])
    gains = [10 ** ((target - level) / 20) if math.isfinite(level) else 1.0 for level in levels]
    return [waveform * gain for (waveform, _), gain in zip(waveforms, gains, strict=True)]


def make_test(
    runs: Sequence[Run], kind: str = PREFERENCE, texts: int = 12, seed: int = 0, group: str = "generated"
) -> tuple[str, dict[str, Any]]:
    """-> the page, which names no run, and its key. ValueError where the page would be larger than 24 MB."""
    trials, training = design(runs, kind, texts, seed, group)
    every = [*trials, *training]
    files = list(dict.fromkeys(stimulus.file for trial in every for stimulus in trial.stimuli))
    loaded = [load_audio(file) for file in files]
    sounds = dict(zip(files, matched(loaded), strict=True))
    rates = dict(zip(files, (rate for _, rate in loaded), strict=True))
    digests = {
        file: hashlib.sha256((32767 * sound).round().short().numpy().tobytes()).hexdigest()
        for file, sound in sounds.items()
    }
    clips = [base64.b64encode(compress(sounds[file], rates[file], 1000 * KBIT)).decode("ascii") for file in files]
    if (size := sum(map(len, clips))) > MOST_BYTES:
        raise ValueError(
            f"{len(trials)} texts take {size / 1e6:.0f} MB of {MOST_BYTES / 1e6:.0f}: choose fewer with --texts"
        )
    shown, known = [], []
    for number, trial in enumerate(every, start=1):
        ids = [_identity(seed, number, place, digests[s.file]) for place, s in enumerate(trial.stimuli)]
        pairs = list(zip(ids, trial.stimuli, strict=True))
        stimuli = [{"id": name, "clip": files.index(stimulus.file)} for name, stimulus in pairs]
        shown.append({"trial": str(number), "text": trial.row["text"], "stimuli": stimuli})
        sources = {name: {"system": s.system, "sha256": sha256(s.file)} for name, s in pairs}
        about = {"script": trial.row["script"], "seed": trial.row["seed"], "text": trial.row["text"]}
        known.append({"trial": str(number), **about, "stimuli": sources})
    contents = [[t["trial"], t["text"], [[s["id"], digests[files[s["clip"]]]] for s in t["stimuli"]]] for t in shown]
    identity = hashlib.sha256(json.dumps([kind, KBIT, contents]).encode()).hexdigest()
    count = len(trials)
    data = {
        "format": FORMAT,
        "page": identity,
        "kind": kind,
        "trials": shown[:count],
        "training": shown[count:],
        "clips": clips,
    }
    names = [run.name for run in runs]
    key = {
        "format": KEY_FORMAT,
        "page": identity,
        "kind": kind,
        "seed": seed,
        "systems": names,
        "trials": known[:count],
    }
    return bare_page("Listening test", BODY, QUESTION, (), Extra(FILES, data)), key


def _identity(seed: int, trial: int, place: int, digest: str) -> str:
    return hashlib.sha256(f"{seed}:{trial}:{place}:{digest}".encode()).hexdigest()[:12]


BODY = '<div id="test"></div><p id="fault" role="alert" hidden></p><noscript>This page needs JavaScript.</noscript>'


def key_path(page_path: Path) -> Path:
    """Where the key of a page lies: beside it."""
    return page_path.with_suffix(".key.json")
