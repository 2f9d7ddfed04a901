"""Listeners' files and the key of their page -> rows of the comparison, and what they say about the listeners."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from higgs.comparison.agreement import krippendorff_alpha, sign_flip_p
from higgs.comparison.listening import CODEC, FORMAT, KEY_FORMAT, MOST_TEXTS, PREFERENCE, RECORDING
from higgs.comparison.runs import Run
from higgs.evaluate.statistics.intervals import Resampling, bootstrap_interval, paired_difference, rate_interval
from higgs.files import absent, read_text, sha256
from higgs.validation import Record, parse_json, validate
from higgs.workflow.tables import Row

MOST_BYTES = 1_000_000
MOST_FILES = 1000
Name = Annotated[str, Field(min_length=1, max_length=60)]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
TrialId = Annotated[str, Field(pattern=r"^[0-9]{1,4}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Preference(Record):
    """Which of two is better: -2 the first by far, 2 the second by far."""

    trial: TrialId
    stimuli: Annotated[list[Id], Field(min_length=2, max_length=2)]
    score: Annotated[int, Field(ge=-2, le=2)]


class Scores(Record):
    """0 to 100 for each sound."""

    trial: TrialId
    scores: Annotated[dict[Id, Annotated[int, Field(ge=0, le=100)]], Field(min_length=2, max_length=20)]


class RatingsFile(Record):
    format: Literal["higgs-ratings-1"]
    page: Digest
    listener: Name
    answers: Annotated[list[dict[str, Any]], Field(max_length=MOST_TEXTS)]


class KeyStimulus(Record):
    system: int | Literal["recording", "codec"]
    sha256: Digest


class KeyTrial(Record):
    trial: TrialId
    script: str
    seed: int | None
    text: str
    stimuli: dict[Id, KeyStimulus]


class Key(Record):
    format: Literal["higgs-listening-key-1"]
    page: Digest
    kind: Literal["preference", "scores"]
    seed: int
    systems: Annotated[list[str], Field(min_length=2, max_length=20)]
    trials: Annotated[list[KeyTrial], Field(min_length=1, max_length=MOST_TEXTS)]


Answers = dict[str, Preference | Scores]


def _read(path: Path, record: type, form: str) -> Any:
    if not path.is_file():
        raise absent("file", path, f"expected one of the format {form}, which the page or `higgs listen` writes")
    if path.stat().st_size > MOST_BYTES * (20 if record is Key else 1):
        raise ValueError(f"{path} is larger than any file of the format {form}")
    return validate(record, parse_json(read_text(path), str(path)), str(path))


def read_ratings(files: Sequence[Path], key: Key, key_file: Path) -> dict[str, Answers]:
    """Files, or folders of them -> listener -> trial -> answer. ValueError names the file that is not of this page."""
    every = [one for file in files for one in (sorted(file.glob("*.json")) if file.is_dir() else [file])]
    if not 0 < len(every) <= MOST_FILES:
        raise ValueError(f"--ratings: expected 1 to {MOST_FILES} files, got {len(every)}")
    stimuli = {trial.trial: set(trial.stimuli) for trial in key.trials}
    listeners: dict[str, Answers] = {}
    sources: dict[str, Path] = {}
    for path in every:
        ratings = _read(path, RatingsFile, FORMAT)
        if ratings.page != key.page:
            raise ValueError(f"{path} is of another page ({ratings.page[:12]}) than {key_file} ({key.page[:12]})")
        name = " ".join("".join(c if c.isprintable() else " " for c in ratings.listener).split()) or "?"
        if name in sources:
            raise ValueError(f"{path} and {sources[name]} are both of the listener {name!r}: give one of them")
        sources[name], answers = path, {}
        for number, raw in enumerate(ratings.answers):
            where = f"{path}: answers[{number}]"
            answer = validate(Preference if key.kind == PREFERENCE else Scores, raw, where)
            named = answer.stimuli if key.kind == PREFERENCE else list(answer.scores)
            if set(named) != stimuli.get(answer.trial):
                raise ValueError(f"{where}: trial {answer.trial!r} with these sounds is not of this page")
            if answer.trial in answers:
                raise ValueError(f"{where}: trial {answer.trial!r} is answered twice")
            answers[answer.trial] = answer
        if not answers:
            raise ValueError(f"{path} holds no answer")
        listeners[name] = answers
    return listeners


def match_systems(key: Key, runs: Sequence[Run]) -> dict[int, int]:
    """System of the key -> the run whose sound it is, by its bytes; of equal runs that with the same name."""
    digests = [_sounds(run, key) for run in runs]
    found: dict[int, int] = {}
    for system, name in enumerate(key.systems):
        wanted = {
            (trial.script, trial.seed, one.sha256)
            for trial in key.trials
            for one in trial.stimuli.values()
            if one.system == system
        }
        fitting = [run for run in range(len(runs)) if run not in found.values() and wanted <= digests[run]]
        fitting.sort(key=lambda run: (runs[run].name != name, run))
        if fitting:
            found[system] = fitting[0]
    return found


def _sounds(run: Run, key: Key) -> set[tuple[str, int | None, str]]:
    wanted = {trial.script for trial in key.trials}
    rows = [(row, run.audio(row)) for row in run.rows() if row["script"] in wanted]
    return {(row["script"], row["seed"], sha256(file)) for row, file in rows if file}


def rated(
    files: Sequence[Path], key_file: Path, runs: Sequence[Run], settings: Resampling
) -> tuple[list[Row], list[str]]:
    """-> rows as those of `paired_runs.compare`, and notes. ValueError where the runs are not those that were heard."""
    key: Key = _read(key_file, Key, KEY_FORMAT)
    listeners = read_ratings(files, key, key_file)
    of_run = match_systems(key, runs)
    others = [system for system, run in of_run.items() if run != 0]
    first = next((system for system, run in of_run.items() if run == 0), None)
    if first is None or not others:
        given = ", ".join(run.name for run in runs)
        raise ValueError(f"{key_file}: listeners heard {' and '.join(key.systems)}, and not the sounds of {given}")
    notes = [f"Listeners: {len(listeners)}, {sum(map(len, listeners.values()))} answers on {len(key.trials)} texts."]
    short = [name for name, answers in listeners.items() if len(answers) < len(key.trials)]
    if short:
        notes.append(f"Not all texts were rated by: {', '.join(short)}.")
    if key.kind == PREFERENCE:
        row, more = preference_row(_oriented(listeners, key, first), ascii_uppercase[of_run[others[0]]])
        return [row], [*notes, *more]
    rows = [score_row(listeners, key, (first, other), ascii_uppercase[of_run[other]], settings) for other in others]
    return [row for row in rows if row], [*notes, *_score_notes(listeners, key)]


def _oriented(listeners: Mapping[str, Answers], key: Key, first: int) -> dict[str, dict[str, int]]:
    """Listener -> trial -> -2 to 2, above zero where the second run was preferred, whichever side it was on."""
    systems = {trial.trial: {name: one.system for name, one in trial.stimuli.items()} for trial in key.trials}
    return {
        name: {t: a.score if systems[t][a.stimuli[0]] == first else -a.score for t, a in answers.items()}
        for name, answers in listeners.items()
    }


def preference_row(answers: Mapping[str, Mapping[str, int]], letter: str = "B") -> tuple[Row, list[str]]:
    """Listener -> trial -> -2 to 2 for B -> the row, with the exact p over texts, and notes.

    `a` and `b` are the shares of texts in percent, ties half each, a text counting once whoever rated it; so it does in
    the interval, Wilson's, because listeners of one text agree more than texts do.
    """
    texts = list(dict.fromkeys(trial for own in answers.values() for trial in own))
    by_text = [[own[text] for own in answers.values() if text in own] for text in texts]
    signs = [[int(np.sign(value)) for value in values] for values in by_text]
    shares = [(sum(values) / len(values) + 1) / 2 for values in signs]
    share, low, high = (200 * value - 100 for value in rate_interval(shares, [1] * len(texts)))
    sums = [sum(values) for values in signs]
    row: Row = {
        "metric": "preference", "title": "listeners' preference, % of texts", "better": "higher",
        "n": len(texts), "texts": len(texts), "unit": "texts",
        "a": 50 - share / 2, "b": 50 + share / 2, "difference": share, "low": low, "high": high,
        "p": sign_flip_p(sums), "smallest_p": 2 / 2 ** len(texts), "letter": letter,
        "standard_error": 200 * float(np.std(shares, ddof=1)) / len(texts) ** 0.5 if len(texts) > 1 else 0.0,
        "changed": sum(any(values) for values in signs),
    }  # fmt: skip
    for_b, for_a = sum(value > 0 for value in sums), sum(value < 0 for value in sums)
    by_sign = sign_flip_p([int(np.sign(value)) for value in sums])
    notes = [
        f"By most listeners {letter} was preferred in {for_b} texts, A in {for_a}, neither in "
        f"{len(sums) - for_b - for_a}: sign test over texts, p = {by_sign:.3g}.",
        _over_listeners(answers),
        _agreement(by_text),
    ]
    if len(texts) > 1:
        means = [float(np.mean(values)) for values in by_text]
        middle, low, high = bootstrap_interval(means)
        notes.append(f"Mean step for {letter} (-2 to 2): {middle:+.2f} [{low:.2f}, {high:.2f}] over texts.")
    return row, notes


def _over_listeners(answers: Mapping[str, Mapping[str, int]]) -> str:
    sums = [sum(int(np.sign(value)) for value in own.values()) for own in answers.values()]
    least = f"with {len(sums)} of them none is below {2 / 2 ** len(sums):.2g}"
    return f"Over listeners in place of texts p = {sign_flip_p(sums):.3g} ({least})."


def _agreement(units: Sequence[Sequence[float]]) -> str:
    alpha = krippendorff_alpha(units)
    if alpha is None:
        return "Agreement of listeners: not known, it takes two who rated the same texts and not all alike."
    return f"Agreement of listeners: Krippendorff's alpha {alpha:.2f} (1 is agreement, 0 that of chance)."


def score_row(
    listeners: Mapping[str, Answers], key: Key, systems: tuple[int, int], letter: str, settings: Resampling
) -> Row | None:
    """Scores of two systems, text by text, the mean over listeners; None with fewer than two texts."""
    sides: tuple[list[float], list[float]] = ([], [])
    for trial in key.trials:
        names = [next(name for name, one in trial.stimuli.items() if one.system == system) for system in systems]
        values = [[a[trial.trial].scores[name] for a in listeners.values() if trial.trial in a] for name in names]
        if values[0]:
            for side, some in zip(sides, values, strict=True):
                side.append(float(np.mean(some)))
    if len(sides[0]) < 2:
        return None
    found = paired_difference(*sides, settings=settings)
    row: Row = {"metric": "score", "title": "listeners' score (0 to 100)", "better": "higher", "n": found.n}
    row |= {
        "texts": found.n,
        "unit": "texts",
        "a": float(np.mean(sides[0])),
        "b": float(np.mean(sides[1])),
        "difference": found.estimate,
        "letter": letter,
    }
    row |= {"low": found.low, "high": found.high, "p": found.p, "standard_error": found.standard_error}
    return row | {"changed": sum(a != b for a, b in zip(*sides, strict=True))}


def _score_notes(listeners: Mapping[str, Answers], key: Key) -> list[str]:
    """Anchors, listeners who did not tell them apart, and agreement."""
    notes, hidden = [], {RECORDING: [], CODEC: []}
    doubtful = []
    for name, answers in listeners.items():
        wrong = 0
        for trial in (trial for trial in key.trials if trial.trial in answers):
            scores = {one.system: answers[trial.trial].scores[n] for n, one in trial.stimuli.items()}
            for anchor, values in hidden.items():
                values += [scores[anchor]] * (anchor in scores)
            wrong += RECORDING in scores and scores[RECORDING] <= scores[CODEC]
        doubtful += [name] * (2 * wrong >= len(answers))
    if hidden[RECORDING]:
        means = ", ".join(f"{name} {np.mean(values):.0f}" for name, values in hidden.items())
        notes.append(f"Hidden anchors, mean score: {means}.")
    if doubtful:
        notes.append(f"Scored the codec as high as the recording in half of the texts or more: {', '.join(doubtful)}.")
    units = [
        [a[trial.trial].scores[name] for a in listeners.values() if trial.trial in a]
        for trial in key.trials
        for name in trial.stimuli
    ]
    return [*notes, _agreement(units)]
