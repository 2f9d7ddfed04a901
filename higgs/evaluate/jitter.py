"""Are transcripts stable when the sound changes by less than can be heard?

With coarse arithmetic transcripts depend on the last bit of a sample, and so on the processor that computed it. No
confidence interval covers that noise: it is measured on dithered copies of the clips, never averaged into a rate.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

from higgs.audio import load_audio
from higgs.evaluate.utterances import OK, Evaluator, ask, text_scores
from higgs.workflow.tables import Row, grouped

UNIT = 1 / 32768  # least significant bit of 16


def dithered(waveform: Tensor, name: str) -> Tensor:
    """[L] -> [L] with triangular noise of up to 1 unit of 16 bits (-98 dBFS), seeded by `name`; not rounded."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, len(waveform), generator=generator)
    return waveform + (first - second) * UNIT


@dataclass(frozen=True)
class NoisyCopy:
    """The record of a clip, which is to be transcribed again with the noise of this `seed` and `copy`."""

    clip: Row
    copy: int
    seed: int

    @property
    def files(self) -> tuple[Path, ...]:
        return (Path(self.clip["path"]),)

    def judge(self, evaluator: Evaluator) -> list[Row]:
        """One record: both hypotheses and the errors of both; an empty hypothesis where the recogniser fails."""
        clip, recogniser = self.clip, evaluator.metric_models.recogniser
        waveform, rate = load_audio(clip["path"])
        noisy = dithered(waveform, f"{self.seed}/{clip['group']}/{clip['name']}/{self.copy}")
        hypothesis = ask(recogniser, lambda j: j.transcribe(noisy, rate, clip["language"]), []) or ""
        scores = text_scores(clip["text"], hypothesis, clip["language"])
        return [
            {name: clip[name] for name in ("group", "name", "script", "words", "word_errors")}
            | {"copy": self.copy, "heard": clip["heard"], "heard_dithered": hypothesis}
            | {"changed": hypothesis != clip["heard"], "word_errors_dithered": scores["word_errors"]}
        ]


def noisy_copies(records: Sequence[Row], count: int | None, copies: int, seed: int) -> list[NoisyCopy]:
    """Records -> `copies` of at most `count` clips of each condition that were transcribed whole (None: of all)."""
    whole, chosen = [r for r in records if r["status"] == OK and r["heard"] is not None], []
    for clips in grouped(whole, itemgetter("group")).values():
        n = len(clips) if count is None else min(count, len(clips))
        chosen += [clips[i * len(clips) // n] for i in range(n)]  # evenly spaced
    return [NoisyCopy(clip, copy, seed) for clip in chosen for copy in range(copies)]


def summarise_jitter(records: Sequence[Row]) -> list[Row]:
    """Records of noisy copies -> a record for each condition."""
    summary = []
    for condition, pooled in grouped(records, itemgetter("group")).items():
        copies = {record["copy"] for record in pooled}
        rates = [_wer_percent([r for r in pooled if r["copy"] == copy], "word_errors_dithered") for copy in copies]
        clean = _wer_percent(pooled, "word_errors")
        record: Row = {"group": condition, "clips": len(pooled) // len(copies), "copies of each": len(copies)}
        record["transcripts changed, %"] = 100 * sum(noisy["changed"] for noisy in pooled) / len(pooled)
        record |= {"WER % of these clips": clean, "with noise": f"{min(rates):.2f} to {max(rates):.2f}"}
        summary.append(record | {"moved, points": max(abs(rate - clean) for rate in rates)})
    return summary


def _wer_percent(records: Sequence[Row], errors: str) -> float:
    return 100 * sum(record[errors] for record in records) / sum(record["words"] for record in records)


def jitter_note(records: Sequence[Row], judge: str) -> str:
    """One sentence: how many transcripts changed, and how far a WER moved."""
    changed = sum(record["changed"] for record in records)
    moved = max(record["moved, points"] for record in summarise_jitter(records))
    changes = f"{changed} of {len(records)} transcripts change and WER moves by at most {moved:.2f} points"
    return f"{judge}: with noise of one unit of 16 bits, which nobody hears, {changes}."
