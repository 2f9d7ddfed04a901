"""Does a recogniser hear the same when the sound changes by less than anybody can hear?

A recogniser whose arithmetic is coarse does not: its transcripts, and the rates that come from them, then hang on the
last bit of a sample, and so on the processor that made it. Such noise is in every comparison and in no interval. It is
measured here on the same clips with dither, and never averaged into a rate.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from higgs.audio import load_audio
from higgs.evaluate.utterances import OK, Evaluator, ask, text_scores
from higgs.workflow.tables import Row

UNIT = 1 / 32768  # of 16 bits


def dithered(waveform: Tensor, name: str) -> Tensor:
    """[L] -> [L] with triangular noise between -1 and 1 unit of 16 bits, the same for the same `name`.

    Not rounded to 16 bits again. At -98 dBFS it has twice the power of what rounding to 16 bits adds.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, len(waveform), generator=generator)
    return waveform + (first - second) * UNIT


def choose(rows: Sequence[Row], count: int | None) -> list[Row]:
    """Judged rows -> those that were heard whole, at most `count` of each group, evenly through it; None: all."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == OK and row["heard"] is not None:
            groups.setdefault(row["group"], []).append(row)
    chosen = []
    for some in groups.values():
        n = len(some) if count is None else min(count, len(some))
        chosen += [some[place * len(some) // n] for place in range(n)]
    return chosen


@dataclass(frozen=True)
class NoisyCopy:
    """A judged row of a clip, to be heard once more with the noise of this `seed` and `copy`."""

    clip: Row
    copy: int
    seed: int

    @property
    def files(self) -> tuple[Path, ...]:
        return (Path(self.clip["path"]),)

    def judge(self, evaluator: Evaluator) -> list[Row]:
        """One row: what is heard now and what was before, and the errors of both.

        A copy that the recogniser fails on counts as one in which nothing was heard.
        """
        clip, recogniser = self.clip, evaluator.panel.recogniser
        waveform, rate = load_audio(clip["path"])
        noisy = dithered(waveform, f"{self.seed}/{clip['group']}/{clip['name']}/{self.copy}")
        heard = ask(recogniser, lambda j: j.transcribe(noisy, rate, clip["language"]), []) or ""
        row = {name: clip[name] for name in ("group", "name", "script", "words", "word_errors")}
        row |= {"copy": self.copy, "heard": clip["heard"], "heard_dithered": heard}
        row["changed"] = heard != clip["heard"]
        scores = text_scores(clip["text"], heard, clip["language"])
        return [row | {"word_errors_dithered": scores["word_errors"]}]


def noisy_copies(rows: Sequence[Row], count: int | None, copies: int, seed: int) -> list[NoisyCopy]:
    """Judged rows -> `copies` of each of the clips that `choose` takes."""
    clips = choose(rows, count)
    return [NoisyCopy(clip, copy, seed) for clip in clips for copy in range(copies)]


def summarise_jitter(rows: Sequence[Row]) -> list[Row]:
    """Rows of noisy copies -> one for each group: transcripts changed, WER, its least and largest by copy."""
    found = []
    for group in dict.fromkeys(row["group"] for row in rows):
        some = [row for row in rows if row["group"] == group]
        copies = {row["copy"]: [] for row in some}
        for row in some:
            copies[row["copy"]].append(row)
        rates = [_rate(copy, "word_errors_dithered") for copy in copies.values()]
        plain = _rate(some, "word_errors")
        found.append(
            {
                "group": group,
                "clips": len(some) // len(copies),
                "copies": len(copies),
                "changed_percent": 100 * sum(row["changed"] for row in some) / len(some),
                "wer_percent": plain,
                "wer_percent_least": min(rates),
                "wer_percent_largest": max(rates),
                "wer_moved": max(abs(rate - plain) for rate in rates),
            }
        )
    return found


def _rate(rows: Sequence[Row], column: str) -> float:
    return 100 * sum(row[column] for row in rows) / sum(row["words"] for row in rows)


def by_jitter(summary: Sequence[Row]) -> list[Row]:
    """What `summarise_jitter` says, under short titles."""
    return [
        {
            "group": row["group"],
            "clips": row["clips"],
            "copies of each": row["copies"],
            "transcripts changed, %": row["changed_percent"],
            "WER % of these clips": row["wer_percent"],
            "with noise": f"{row['wer_percent_least']:.2f} to {row['wer_percent_largest']:.2f}",
            "moved, points": row["wer_moved"],
        }
        for row in summary
    ]


def jitter_note(rows: Sequence[Row], judge: str) -> str:
    """The one sentence: of how many transcripts how many changed, and how far a WER moved."""
    changed = sum(row["changed"] for row in rows)
    moved = max(row["wer_moved"] for row in summarise_jitter(rows))
    return (
        f"{judge}: with noise of one unit of 16 bits, which nobody hears, {changed} of {len(rows)} transcripts change "
        f"and WER moves by at most {moved:.2f} points."
    )
