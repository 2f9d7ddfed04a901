"""`SpeechRequest`: the one value that the command line, the HTTP server and scripts make of a text to speak."""

import unicodedata
from dataclasses import dataclass
from typing import Literal

from higgs.config import SamplingConfig
from higgs.data.chatml import ChatMLSample
from higgs.data.text.chunks import (
    LIKE_A_SPEAKER,
    SPEAKER_TAG,
    TAG_COLON,
    WORD,
    Chunk,
    ChunkOptions,
    chunk_text,
    chunk_turns,
    speaker_turns,
)
from higgs.data.text.folding import FOLDED
from higgs.data.text.markup import end_lines, plain_text
from higgs.data.text.normalize import normalize_prompt
from higgs.data.text.numbers import spell_out
from higgs.data.voices import Voice, speakers_prompt


@dataclass(frozen=True)
class SpeechRequest:
    """Conversations, each of which ends in the text to speak.

    Without `chunks` there is one, spoken in a single pass; else one for each chunk, spoken in order. Settings that are
    None are the checkpoint's.
    """

    samples: tuple[ChatMLSample, ...]
    chunks: tuple[Chunk, ...] = ()
    options: ChunkOptions = ChunkOptions()
    sampling: SamplingConfig | None = None
    max_new_tokens: int | None = None


def speech_request(
    text: str,
    voice: Voice | dict[int, Voice],
    options: ChunkOptions | None = None,
    scene: str | None = None,
    chunked: bool | None = None,
    normalize: Literal["words", "reference"] | None = None,
    sampling: SamplingConfig | None = None,
    max_new_tokens: int | None = None,
) -> SpeechRequest:
    """A text and its voice, or a dialogue with `[SPEAKERn]` tags and the voice of each speaker.

    `chunked` None splits what is longer than `options.max_words`, and dialogues with a prompt per speaker.
    `normalize` "reference" applies the reference implementation's clean-up alone; "words" first takes markup off and
    reads numbers and abbreviations as words. ValueError for text that cannot be spoken.
    """
    text = unicodedata.normalize("NFC", text).translate(FOLDED)
    if not text.strip():
        raise ValueError("there is no text to speak")
    if other := LIKE_A_SPEAKER.search(text):
        raise ValueError(f"{other[0].strip()!r} looks like a speaker; speakers are [SPEAKER0], [SPEAKER1], ...")
    if normalize == "words":
        text = spell_out(plain_text(text))
    if "\n" in text and normalize != "reference":
        text = end_lines(text)
    if not any(map(str.isalnum, text)):
        raise ValueError(f"there is nothing to speak in {text.strip()[:40]!r}: no letter and no digit")
    options = options or ChunkOptions()
    text = TAG_COLON.sub(r"\1", text)
    turns = speaker_turns(text) if "[" in text else []
    if bool(turns) != isinstance(voice, dict):
        raise ValueError("[SPEAKERn] tags in the text and a voice for each speaker go together: one is there alone")
    if chunked is None:
        chunked = len(WORD.findall(text)) > options.max_words or bool(turns and options.per_speaker_context)
    if not chunked:
        chunks = ()
        samples = [speakers_prompt(voice, text, scene) if turns else voice.prompt(text, scene)]
    elif not turns:
        chunks = chunk_text(text, options.max_words)
        samples = [voice.prompt(chunk.text, scene) for chunk in chunks]
    else:
        chunks = chunk_turns(turns, options)
        samples = [_turn_prompt(voice, chunk, options, scene) for chunk in chunks]
    if normalize:
        samples = map(normalize_prompt, samples)
    return SpeechRequest(tuple(samples), tuple(chunks), options, sampling, max_new_tokens)


def _turn_prompt(voices: dict[int, Voice], chunk: Chunk, options: ChunkOptions, scene: str | None) -> ChatMLSample:
    """The prompt of a chunk of a dialogue: with all speakers, or with its own alone, and then without the tag."""
    if not options.per_speaker_context:
        return speakers_prompt(voices, chunk.text, scene)
    (speaker,) = chunk.speakers
    if speaker not in voices:
        raise ValueError(f"no speaker {speaker}; there are: {', '.join(map(str, sorted(voices)))}")
    return voices[speaker].prompt(SPEAKER_TAG.sub("", chunk.text).strip(), scene)
