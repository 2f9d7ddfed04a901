"""Speech in chunks: dialogues turn by turn, and long forms in segments of at most 10 s.

A dialogue: are each turn's words right, and is each speaker one voice, distinct from the others? Similarity and
dissimilarity are those of github.com/boson-ai/higgs-audio, issue 80: of a speaker's turns among themselves, and one
minus that of consecutive turns of different speakers. Their judge was WavLM-large; numbers of another do not compare.

A long form: drift of the voice, lost words, silence, and clicks at chunk boundaries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import jiwer
import torch
from torch import Tensor

from higgs.audio import load_audio
from higgs.data.loudness import split_at_quiet
from higgs.evaluate.judges.ge2e import similarity
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.metrics.error_rates import normalize
from higgs.evaluate.metrics.signal import mono, silence_share
from higgs.evaluate.statistics.intervals import wilson_interval
from higgs.evaluate.utterances import SCORES, Evaluator, text_scores, transcribe_and_embed, transcript_fault
from higgs.workflow.tables import Row, grouped, mean_known

DIALOGUE, LONG_FORM = "dialogue", "long_form"
ACCURACY = ("attributed_right_percent", "attributed_right_low", "attributed_right_high")
COMPARED = ("similarity", "similarity_within", "dissimilarity_to_previous", "attributed", "attributed_right")
CLICK_RATIO = 1.5
NEAR_SECONDS = 0.02
FLOOR = 1e-4


@dataclass(frozen=True)
class Turn:
    """A speaker's text; its first sample, and the one after its last."""

    speaker: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class ChunkedSample:
    """A sample that was spoken in chunks: a dialogue turn by turn, or a long form in one voice."""

    name: str
    form: str
    path: Path
    text: str
    turns: tuple[Turn, ...]
    voices: tuple[tuple[str, Path], ...]  # speakers, and a recording of each
    language: str

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *(path for _, path in self.voices))

    def judge(self, evaluator: Evaluator) -> list[Row]:
        """A record for each turn of a dialogue, and for each segment of a long form; none of one that is not scored."""
        if self.form != DIALOGUE and transcript_fault(self.text, self.language):
            return []
        known = self.voices if evaluator.metric_models.speaker else ()
        voices = {name: evaluator.reference_voice(path, []) for name, path in known}
        voices = {name: voice for name, voice in voices.items() if voice is not None}
        judge = judge_dialogue if self.form == DIALOGUE else judge_long
        return judge(evaluator.metric_models, self, *load_audio(self.path), voices)


Voices = Mapping[str, Tensor]


def judge_dialogue(
    models: MetricModels, sample: ChunkedSample, waveform: Tensor, sample_rate: int, references: Voices
) -> list[Row]:
    """float [L] -> one record for each turn, in which a turn without sound has all words deleted.

    `references` are embeddings of the target voices, by speaker; a turn is attributed to the speaker with the nearest
    reference. Without them, to the speaker whose other turns are nearest in the mean, which needs two turns of each.
    """
    records, voices = [], []
    for number, turn in enumerate(sample.turns):
        notes: list[str] = []
        if len(segment := waveform[turn.start : turn.end]):
            hypothesis, voice = transcribe_and_embed(models, segment, sample_rate, sample.language, notes)
        else:
            hypothesis, voice = "" if models.recogniser else None, None
            notes.append("the turn has no sound")
        record: Row = {"dialogue": sample.name, "turn": number, "speaker": turn.speaker, "text": turn.text}
        record |= {"start": turn.start / sample_rate, "end": turn.end / sample_rate, "heard": hypothesis}
        if fault := transcript_fault(turn.text, sample.language):
            record |= dict.fromkeys(SCORES)
            notes.append(fault[1])
        else:
            record |= text_scores(turn.text, hypothesis, sample.language)
        records.append(record | {"note": "; ".join(notes)})
        voices.append(voice)
    compared = _compare([turn.speaker for turn in sample.turns], voices, references)
    return [record | voice for record, voice in zip(records, compared, strict=True)]


def _compare(speakers: Sequence[str], voices: Sequence[Tensor | None], references: Voices) -> list[Row]:
    """-> the columns COMPARED of each turn."""
    records: list[Row] = []
    for number, (speaker, voice) in enumerate(zip(speakers, voices, strict=True)):
        record: Row = dict.fromkeys(COMPARED)
        if voice is not None:
            turns = {
                name: [v for i, v in enumerate(voices) if v is not None and i != number and speakers[i] == name]
                for name in dict.fromkeys(speakers)
            }
            if own := [similarity(voice, other) for other in turns[speaker]]:
                record["similarity_within"] = sum(own) / len(own)
            if speaker in references:
                record["similarity"] = similarity(voice, references[speaker])
            if number and speakers[number - 1] != speaker and voices[number - 1] is not None:
                record["dissimilarity_to_previous"] = 1 - similarity(voice, voices[number - 1])
            if (nearest := _attribute(voice, turns, references)) is not None:
                record |= {"attributed": nearest, "attributed_right": nearest == speaker}
        records.append(record)
    return records


def _attribute(voice: Tensor, turns: Mapping[str, Sequence[Tensor]], references: Voices) -> str | None:
    """The speaker with the most similar voice; None where one has nothing to compare with, or there is only one."""
    if all(speaker in references for speaker in turns):
        targets = {speaker: references[speaker] for speaker in turns}
    elif all(turns.values()):
        targets = {speaker: sum(some) / len(some) for speaker, some in turns.items()}
    else:
        return None
    return max(targets, key=lambda speaker: similarity(voice, targets[speaker])) if len(targets) > 1 else None


def summarise_dialogues(records: Sequence[Row]) -> list[Row]:
    """Records of turns -> one for each speaker, and "all" last.

    `voices` is the geometric mean of similarity and dissimilarity, the score that the authors publish. Speaker
    attribution accuracy has Wilson's 95 % interval.
    """
    parts = grouped(records, itemgetter("speaker"))
    return [_summary(name, some) for name, some in (*parts.items(), ("all", records))]


def _summary(name: str, records: Sequence[Row]) -> Row:
    scored = [record for record in records if record["word_errors"] is not None]
    words = sum(record["words"] for record in scored)
    within, apart = (mean_known(records, c) for c in ("similarity_within", "dissimilarity_to_previous"))
    hits = [record["attributed_right"] for record in records if record["attributed_right"] is not None]
    accuracy = [100 * end for end in wilson_interval(sum(hits), len(hits))] if hits else [None] * 3
    summary: Row = {"speaker": name, "turns": len(records), "scored": len(scored)}
    summary["wer_percent"] = 100 * sum(record["word_errors"] for record in scored) / words if words else None
    summary |= {"similarity": mean_known(records, "similarity"), "similarity_within": within, "dissimilarity": apart}
    known = within is not None and apart is not None
    summary["voices"] = (max(0.0, within) * max(0.0, apart)) ** 0.5 if known else None
    return summary | dict(zip(ACCURACY, accuracy, strict=True))


def judge_long(
    models: MetricModels, sample: ChunkedSample, waveform: Tensor, sample_rate: int, references: Voices
) -> list[Row]:
    """float [L] -> one record for each segment, which ends in a pause after 6.7 to 10 s.

    All hypotheses are aligned with the text at once: an error belongs to the segment of its hypothesis word, deleted
    words to that of the next one. The target voice is the first of `references`, or else the first segment's. Chunks
    were joined where turns start (column "seams"). ValueError for a text without words.
    """
    waveform = mono(waveform, "waveform").float()
    boundaries = [turn.start for turn in sample.turns if 0 < turn.start < len(waveform)]
    words = normalize(sample.text, sample.language).split()
    if not words:
        raise ValueError(f"{sample.name}: the text holds no words after normalisation ({sample.language})")
    reference = next(iter(references.values()), None)
    records, hypotheses, start = [], [], 0
    for number, segment in enumerate(split_at_quiet(waveform, sample_rate, 10.0)):
        notes: list[str] = []
        hypothesis, voice = transcribe_and_embed(models, segment, sample_rate, sample.language, notes)
        reference = voice if reference is None else reference
        end = start + len(segment)
        clicks = [click_ratio(waveform, place, sample_rate) for place in boundaries if start <= place < end]
        record: Row = {"name": sample.name, "stretch": number, "start": start / sample_rate, "end": end / sample_rate}
        record |= {"heard": hypothesis, "words": None, "word_errors": None, "wer_percent": None}
        record["silence_share"] = silence_share(segment, sample_rate) if len(segment) >= sample_rate // 50 else None
        record["note"] = "; ".join(notes)
        record["similarity"] = None if voice is None else similarity(voice, reference)
        record |= {"seams": len(clicks), "clicks": sum(ratio > CLICK_RATIO for ratio in clicks)}
        records.append(record)
        hypotheses.append(normalize(hypothesis or "", sample.language).split())
        start = end
    if models.recogniser:
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

    The largest second difference over the boundary, relative to the largest within 20 ms of it (at least 1e-4). Uncut
    speech was below 1.5 at all 4,000 places tried; two thirds of abrupt cuts are above.
    """
    near = round(NEAR_SECONDS * sample_rate)
    bend = waveform.double().diff(n=2).abs()  # bend[i] is centred on sample i + 1
    over = bend[max(0, boundary - 2) : boundary]
    beside = torch.cat([bend[max(0, boundary - near) : max(0, boundary - 4)], bend[boundary + 2 : boundary + near]])
    if not len(over):
        return 0.0
    return over.max().item() / max(FLOOR, beside.max().item() if len(beside) else 0.0)
