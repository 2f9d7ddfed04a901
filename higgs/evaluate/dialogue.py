"""Dialogues: the words of each turn, and whether each speaker is one voice, distinct from the others.

The boundaries of turns are known, because speech is generated turn by turn. Similarity and dissimilarity follow what
the authors of Higgs Audio said of their evaluation (github.com/boson-ai/higgs-audio, issue 80): the similarity of a
speaker's turns among themselves, and one minus the similarity of consecutive turns of different speakers. Their judge
was WavLM-large; numbers of another one do not compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from higgs.evaluate.judges.ge2e import similarity
from higgs.evaluate.judges.registry import MetricModels
from higgs.evaluate.statistics.intervals import wilson_interval
from higgs.evaluate.utterances import SCORES, text_scores, transcribe_and_embed, transcript_fault
from higgs.workflow.tables import Row, mean_known

ACCURACY = ("attributed_right_percent", "attributed_right_low", "attributed_right_high")
COMPARED = ("similarity", "similarity_within", "dissimilarity_to_previous", "attributed", "attributed_right")


@dataclass(frozen=True)
class Turn:
    """A speaker's text; its first sample, and the one after its last."""

    speaker: str
    text: str
    start: int
    end: int


def judge_dialogue(
    metric_models: MetricModels,
    name: str,
    waveform: Tensor,
    sample_rate: int,
    turns: Sequence[Turn],
    references: Mapping[str, Tensor] | None = None,
    language: str = "en",
) -> list[Row]:
    """float [L], its turns -> one record for each turn, in which a turn without sound has all words deleted.

    `references` are embeddings of the target voices, by speaker; a turn is attributed to the speaker with the nearest
    reference. Without them, to the speaker whose other turns are nearest in the mean, which needs two turns of each.
    """
    if not turns:
        raise ValueError(f"dialogue {name}: no turns")
    records, voices = [], []
    for number, turn in enumerate(turns):
        notes: list[str] = []
        if len(segment := waveform[turn.start : turn.end]):
            hypothesis, voice = transcribe_and_embed(metric_models, segment, sample_rate, language, notes)
        else:
            hypothesis, voice = "" if metric_models.recogniser else None, None
            notes.append("the turn has no sound")
        record: Row = {"dialogue": name, "turn": number, "speaker": turn.speaker, "text": turn.text}
        record |= {"start": turn.start / sample_rate, "end": turn.end / sample_rate, "heard": hypothesis}
        if fault := transcript_fault(turn.text, language):
            record |= dict.fromkeys(SCORES)
            notes.append(fault[1])
        else:
            record |= text_scores(turn.text, hypothesis, language)
        records.append(record | {"note": "; ".join(notes)})
        voices.append(voice)
    compared = _compare([turn.speaker for turn in turns], voices, references or {})
    return [record | voice for record, voice in zip(records, compared, strict=True)]


def _compare(speakers: Sequence[str], voices: Sequence[Tensor | None], references: Mapping[str, Tensor]) -> list[Row]:
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


def _attribute(voice: Tensor, turns: Mapping[str, Sequence[Tensor]], references: Mapping[str, Tensor]) -> str | None:
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

    WER is all errors over all words. `voices` is the geometric mean of similarity and dissimilarity, the score that the
    authors publish. Speaker attribution accuracy has Wilson's 95 % interval.
    """
    parts: dict[str, list[Row]] = {}
    for record in records:
        parts.setdefault(record["speaker"], []).append(record)
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
