"""Long speech in segments of at most 10 s: drift of the voice, lost words, silence, and clicks at chunk boundaries."""

from collections.abc import Sequence

import jiwer
import torch
from torch import Tensor

from higgs.data.loudness import split_at_quiet
from higgs.evaluate.judges.ge2e import similarity
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.metrics.error_rates import normalize
from higgs.evaluate.metrics.signal import mono, silence_share
from higgs.evaluate.utterances import transcribe_and_embed
from higgs.workflow.tables import Row

CLICK_RATIO = 1.5
NEAR_SECONDS = 0.02
FLOOR = 1e-4


def judge_long(
    metric_models: MetricModels,
    name: str,
    waveform: Tensor,
    sample_rate: int,
    text: str,
    reference: Tensor | None = None,
    boundaries: Sequence[int] = (),
    language: str = "en",
) -> list[Row]:
    """float [L] and its text -> one record for each segment, which ends in a pause after 6.7 to 10 s.

    The hypotheses of all segments are aligned with the text at once: an error belongs to the segment of its hypothesis
    word, deleted words to that of the next hypothesis word. `reference` is the embedding of the target voice; without
    it, the first segment's. `boundaries` are the samples at which chunks were joined (column "seams").

    ValueError for a text without words, and for boundaries outside the waveform.
    """
    waveform = mono(waveform, "waveform").float()
    if outside := [place for place in boundaries if not 0 < place < len(waveform)]:
        raise ValueError(f"{name}: boundaries {outside} lie outside of {len(waveform)} samples")
    words = normalize(text, language).split()
    if not words:
        raise ValueError(f"{name}: the text holds no words after normalisation ({language})")
    records, hypotheses, start = [], [], 0
    for number, segment in enumerate(split_at_quiet(waveform, sample_rate, 10.0)):
        notes: list[str] = []
        hypothesis, voice = transcribe_and_embed(metric_models, segment, sample_rate, language, notes)
        reference = voice if reference is None else reference
        end = start + len(segment)
        clicks = [click_ratio(waveform, place, sample_rate) for place in boundaries if start <= place < end]
        record: Row = {"name": name, "stretch": number, "start": start / sample_rate, "end": end / sample_rate}
        record |= {"heard": hypothesis, "words": None, "word_errors": None, "wer_percent": None}
        record["silence_share"] = silence_share(segment, sample_rate) if len(segment) >= sample_rate // 50 else None
        record["note"] = "; ".join(notes)
        record["similarity"] = None if voice is None else similarity(voice, reference)
        record |= {"seams": len(clicks), "clicks": sum(ratio > CLICK_RATIO for ratio in clicks)}
        records.append(record)
        hypotheses.append(normalize(hypothesis or "", language).split())
        start = end
    if metric_models.recogniser:
        for record, (count, errors) in zip(records, align(words, hypotheses), strict=True):
            record |= {"words": count, "word_errors": errors}
            record["wer_percent"] = 100 * errors / count if count else None
    return records


def align(words: Sequence[str], hypotheses: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Words of a text, words of each segment's hypothesis -> (words, errors) of each; they add up to the whole."""
    segment_of = [number for number, some in enumerate(hypotheses) for _ in some]
    counts, errors = [0] * len(hypotheses), [0] * len(hypotheses)
    hypothesis = [word for some in hypotheses for word in some]
    (chunks,) = jiwer.process_words(" ".join(words), " ".join(hypothesis)).alignments
    for chunk in chunks:
        length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for step in range(length):
            place = chunk.hyp_start_idx + (0 if chunk.type == "delete" else step)
            segment = segment_of[place] if place < len(hypothesis) else len(hypotheses) - 1
            counts[segment] += chunk.type != "insert"
            errors[segment] += chunk.type != "equal"
    return list(zip(counts, errors, strict=True))


def click_ratio(waveform: Tensor, boundary: int, sample_rate: int) -> float:
    """[L], the first sample after a boundary -> how far the waveform jumps there; above 1.5 it is audible as a click.

    The largest second difference over the boundary, relative to the largest within 20 ms on either side (at least 1e-4
    of full scale). Uncut speech was below 1.5 at all 4,000 places tried; two thirds of abrupt cuts are above.
    """
    near = round(NEAR_SECONDS * sample_rate)
    bend = waveform.double().diff(n=2).abs()  # bend[i] is centred on sample i + 1
    over = bend[max(0, boundary - 2) : boundary]
    beside = torch.cat([bend[max(0, boundary - near) : max(0, boundary - 4)], bend[boundary + 2 : boundary + near]])
    if not len(over):
        return 0.0
    return over.max().item() / max(FLOOR, beside.max().item() if len(beside) else 0.0)
