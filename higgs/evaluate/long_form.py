"""Long speech, stretch by stretch: does it drift, lose words, click at its seams, or fall silent?"""

from collections.abc import Sequence

import jiwer
import torch
from torch import Tensor

from higgs.evaluate.judges.ge2e import similarity
from higgs.evaluate.judges.registry import Panel
from higgs.evaluate.metrics.error_rates import normalize
from higgs.evaluate.metrics.signal import mono, silence_share
from higgs.evaluate.pieces import split_at_quiet
from higgs.evaluate.utterances import ask
from higgs.workflow.tables import Row

CLICK_RATIO = 1.5
NEAR_SECONDS = 0.02
FLOOR = 1e-4


def judge_long(
    panel: Panel,
    name: str,
    waveform: Tensor,
    sample_rate: int,
    text: str,
    reference: Tensor | None = None,
    seams: Sequence[int] = (),
    language: str = "en",
) -> list[Row]:
    """float [L] and the text of all of it -> one row for each stretch of at most 10 s.

    Stretches end in pauses, so they are 6.7 to 10 s long. All that was heard is aligned with the
    text at once; an error belongs to the stretch in which it was heard, missing words to the one in
    which the next word was. `reference` is the embedding of the voice that was wanted; without it,
    the first stretch's. `seams` are the samples at which chunks were joined.

    Raises ValueError for a text without words, and for seams outside the waveform.
    """
    waveform = mono(waveform, "waveform").float()
    if outside := [seam for seam in seams if not 0 < seam < len(waveform)]:
        raise ValueError(f"{name}: seams {outside} lie outside of {len(waveform)} samples")
    words = normalize(text, language).split()
    if not words:
        raise ValueError(f"{name}: the text holds no words after normalisation ({language})")
    rows, heard, start = [], [], 0
    for number, piece in enumerate(split_at_quiet(waveform, sample_rate, 10.0)):
        row, voice = _judge_stretch(panel, piece, sample_rate, language)
        reference = voice if reference is None else reference
        end = start + len(piece)
        clicks = [click_ratio(waveform, seam, sample_rate) for seam in seams if start <= seam < end]
        rows.append(
            {"name": name, "stretch": number, "start": start / sample_rate, "end": end / sample_rate}
            | row
            | {"similarity": None if voice is None else similarity(voice, reference)}
            | {"seams": len(clicks), "clicks": sum(ratio > CLICK_RATIO for ratio in clicks)}
        )
        heard.append(normalize(row["heard"] or "", language).split())
        start = end
    if panel.recogniser:
        for row, (count, errors) in zip(rows, align(words, heard), strict=True):
            row |= {"words": count, "word_errors": errors}
            row["wer_percent"] = 100 * errors / count if count else None
    return rows


def _judge_stretch(panel: Panel, piece: Tensor, sample_rate: int, language: str) -> tuple[Row, Tensor | None]:
    notes: list[str] = []
    heard = ask(panel.recogniser, lambda j: j.transcribe(piece, sample_rate, language), notes)
    voice = ask(panel.speaker, lambda j: j.embed(piece, sample_rate), notes)
    silent = silence_share(piece, sample_rate) if len(piece) >= sample_rate // 50 else None
    row = {"heard": heard, "words": None, "word_errors": None, "wer_percent": None}
    return row | {"silence_share": silent, "note": "; ".join(notes)}, voice


def align(words: Sequence[str], heard: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Words of a text, words heard in each stretch -> (words, errors) of each; both add up to those of the whole."""
    stretch_of = [number for number, some in enumerate(heard) for _ in some]
    counts, errors = [0] * len(heard), [0] * len(heard)
    said = [word for some in heard for word in some]
    (chunks,) = jiwer.process_words(" ".join(words), " ".join(said)).alignments
    for chunk in chunks:
        length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for step in range(length):
            place = chunk.hyp_start_idx + (0 if chunk.type == "delete" else step)
            stretch = stretch_of[place] if place < len(said) else len(heard) - 1
            counts[stretch] += chunk.type != "insert"
            errors[stretch] += chunk.type != "equal"
    return list(zip(counts, errors, strict=True))


def click_ratio(waveform: Tensor, seam: int, sample_rate: int) -> float:
    """[L], the first sample behind a joint -> how far it stands out; above 1.5 it can be heard as a click.

    The largest second difference over the joint, relative to the largest within 20 ms on either
    side (at least 1e-4 of full scale). In whole recordings of speech it lies below 1.5 everywhere
    that was tried (4,000 places); of abrupt cuts through speech two thirds lie above.
    """
    near = round(NEAR_SECONDS * sample_rate)
    bend = waveform.double().diff(n=2).abs()  # bend[i] is centred on sample i + 1
    over = bend[max(0, seam - 2) : seam]
    beside = torch.cat([bend[max(0, seam - near) : max(0, seam - 4)], bend[seam + 2 : seam + near]])
    if not len(over):
        return 0.0
    return over.max().item() / max(FLOOR, beside.max().item() if len(beside) else 0.0)
