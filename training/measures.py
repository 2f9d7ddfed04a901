"""What the examination counts: rates with their intervals, nearest voices, and how they are written down."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from higgs.evaluate.metrics.error_rates import character_errors, word_errors
from higgs.evaluate.statistics.intervals import bootstrap_interval, wilson_interval
from higgs.files import replacing
from training.corpus.voices import SAMPLE_RATE


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """Percent, with Wilson's interval."""
    interval = wilson_interval(sum(hits), len(hits))
    ends = [100 * interval.low, 100 * interval.high]
    return {"hits": sum(hits), "of": len(hits), "percent": 100 * mean(hits), "interval": ends}


def nearest(vector: Tensor | None, targets: Tensor) -> int | None:
    """[D], [n, D] -> which of them; None for a clip without a voice."""
    return None if vector is None else int((targets @ vector).argmax())


def centroid(vectors: Sequence[Tensor | None]) -> Tensor:
    found = torch.stack([vector for vector in vectors if vector is not None])
    return torch.nn.functional.normalize(found.mean(0), dim=0)


def told_apart(vectors: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """Clips by voice -> how often the nearest centroid, the clip itself left out, is that of its own voice."""
    names = sorted({name for name, _ in vectors})
    hits = []
    for index, (own, vector) in enumerate(vectors):
        others = [pair for at, pair in enumerate(vectors) if at != index]
        groups = [[v for name, v in others if name == wanted] for wanted in names]
        if not all(groups):
            continue
        targets = torch.stack([centroid(group) for group in groups])
        hits.append(names[nearest(vector, targets)] == own)
    return share(hits) if hits else {"of": 0}


def error_rates(judge: Any, texts: Sequence[str], clips: Sequence[Tensor]) -> dict[str, Any]:
    """Takes of one sentence are drawn together: the sentences vary, not the takes."""
    pairs = list(zip(texts, clips, strict=True))
    heard = [judge.transcribe(c, SAMPLE_RATE) for _, c in tqdm(pairs, desc="hear", mininterval=5)]
    words = [word_errors(text, h) for text, h in zip(texts, heard, strict=True)]
    characters = [character_errors(text, h) for text, h in zip(texts, heard, strict=True)]
    rate = 100 * sum(w.errors for w in words) / sum(w.total for w in words)
    row: dict[str, Any] = {"wer_percent": rate}
    if len(set(texts)) > 1:
        found = bootstrap_interval([w.errors for w in words], [w.total for w in words], clusters=list(texts))
        row["wer_interval"] = [100 * found.low, 100 * found.high]
    row["cer_percent"] = 100 * sum(c.errors for c in characters) / sum(c.total for c in characters)
    row["whole_sentences_percent"] = 100 * mean([w.errors == 0 for w in words])
    return row


def plain_rate(judge: Any, texts: Sequence[str], clips: Sequence[Tensor]) -> float:
    words = [word_errors(text, judge.transcribe(clip, SAMPLE_RATE)) for text, clip in zip(texts, clips, strict=True)]
    return sum(w.errors for w in words) / sum(w.total for w in words)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(rounded(content), indent=2) + "\n", encoding="utf-8")
