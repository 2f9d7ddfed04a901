"""Conversations: prompts as messages and as tokens.

A prompt is messages in Llama-3's chat format: audio of the assistant is output of the model, other audio is input. Each
fragment is tokenised on its own, so that no BPE merge crosses fragments, as in the reference (boson-ai/higgs-audio).
"""

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from higgs.audio import load_audio, resample
from higgs.data.text.folding import check_text
from higgs.data.text.tokenizer import TextTokenizer
from higgs.delay import IGNORE
from higgs.tokens import SPECIAL_TOKENS, TokenIds

GENERATE = "Generate audio following instruction."
MULTI_SPEAKER = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech for the following "
    "text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
QUIET_ROOM = "Audio is recorded from a quiet room."
ROLES = ("system", "user", "assistant")
MOST_SECONDS = 1e9  # of an offset or a duration: 32 years
NO_FILE = ("", "placeholder")  # as an `audio_url`: the caller supplies the codes


@dataclass(frozen=True)
class TextContent:
    """Text of a message. `<|...|>` strings are plain text, unless `allow_special` makes them tokens."""

    text: str
    allow_special: bool = False


@dataclass(frozen=True)
class AudioContent:
    """Audio of a message: a file, or neither `audio_url` nor `raw_audio`, when the caller supplies its codes."""

    audio_url: str = ""  # path of the file
    raw_audio: str | None = None  # the whole file in base64
    offset: float | None = None  # the segment, in seconds
    duration: float | None = None
    row_id: int | None = None  # metadata

    def __post_init__(self) -> None:
        if not 0 <= (self.offset or 0) <= MOST_SECONDS:
            raise ValueError(f"offset must be 0 or more seconds, at most {MOST_SECONDS:g}, got {self.offset}")
        if self.duration is not None and not 0 < self.duration <= MOST_SECONDS:
            raise ValueError(f"duration must be more than 0 seconds, at most {MOST_SECONDS:g}, got {self.duration}")

    @property
    def has_data(self) -> bool:
        return self.audio_url not in NO_FILE or self.raw_audio is not None

    @property
    def name(self) -> str:
        """The key of its codes: the url and, as a media fragment, the segment (`a.wav#t=1.5,4`)."""
        start = self.offset or 0.0
        end = "" if self.duration is None else f",{start + self.duration:.6g}"
        return f"{self.audio_url}#t={start:.6g}{end}" if start or end else self.audio_url

    def content(self) -> bytes:
        """Of the file in `raw_audio`. Raises ValueError where that is not base64."""
        try:
            return base64.b64decode(self.raw_audio, validate=True)
        except ValueError as error:
            raise ValueError(f"raw_audio is not base64: {error}") from error

    def load(self, sample_rate: int, folder: str | Path = ".") -> Tensor:
        """-> [L] at `sample_rate`; raises as `read`."""
        waveform, rate = self.read(folder)
        return resample(waveform, rate, sample_rate)

    def read(self, folder: str | Path = ".") -> tuple[Tensor, int]:
        """-> [L] and its sample rate. ValueError for audio without data, not readable, or shorter than the segment."""
        if not self.has_data:
            raise ValueError("the conversation holds audio without a file, and no reference_codes for it")
        if self.audio_url not in NO_FILE:
            waveform, rate = load_audio(Path(folder) / self.audio_url)
        else:
            waveform, rate = load_audio(self.content())
        start = round((self.offset or 0) * rate)
        stop = len(waveform) if self.duration is None else start + round(self.duration * rate)
        if not start < stop <= len(waveform):
            name, seconds = self.name or "raw_audio", len(waveform) / rate
            raise ValueError(f"{name}: seconds {start / rate:g} to {stop / rate:g} of audio that has {seconds:g}")
        return waveform[start:stop], rate


Content = str | TextContent | AudioContent
# Text of several speakers: (number, line) pairs, or a text with `[SPEAKERn]` tags.
Lines = str | Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Message:
    """One turn. Raises ValueError for text that cannot be spoken (`check_text`); a message with audio may have none."""

    role: str
    content: Content | list[Content]
    recipient: str | None = None  # addressee of an assistant's message
    parts: list[TextContent | AudioContent] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if self.recipient is not None and self.role != "assistant":
            raise ValueError(f"only the assistant's messages have a recipient, not the {self.role}'s")
        items = self.content if isinstance(self.content, list) else [self.content]
        parts = [TextContent(item) if isinstance(item, str) else item for item in items]
        object.__setattr__(self, "parts", parts)
        texts = [part.text for part in parts if isinstance(part, TextContent)]
        if (text := "".join(texts)).strip() or (self.role == "user" and len(texts) == len(parts)):
            check_text(text)


@dataclass(frozen=True)
class ChatMLSample:
    """A conversation. Messages before `start_index` are not trained on; `misc` and `speaker` are metadata."""

    messages: list[Message]
    start_index: int = 0
    speaker: str | None = None
    misc: dict[str, Any] | None = None

    @property
    def audios(self) -> list[AudioContent]:
        """Every audio in order: the k-th belongs to the k-th placeholder."""
        return [p for m in self.messages for p in m.parts if isinstance(p, AudioContent)]


@dataclass
class Tokens:
    """A tokenised conversation; one placeholder for each audio. Labels of what is not trained are -100."""

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    audios: list[AudioContent] = field(default_factory=list)

    def add(self, ids: list[int], trained: bool) -> None:
        self.input_ids += ids
        self.labels += ids if trained else [IGNORE] * len(ids)


def tokenize(
    sample: ChatMLSample, tokenizer: TextTokenizer, generate: bool = False, force_audio: bool = True
) -> Tokens:
    """-> the prompt's tokens. `generate` appends the assistant's header, `force_audio` also the start of audio."""
    ids, tokens, blank_line = TokenIds.of(tokenizer), Tokens(), tokenizer.encode("\n\n")

    def header(role: str) -> list[int]:
        return [ids.start_header, *tokenizer.encode(role), ids.end_header, *blank_line]

    for index, message in enumerate(sample.messages):
        is_output = message.role == "assistant"
        trained = is_output and index >= sample.start_index
        tokens.add(([ids.begin_of_text] if index == 0 else []) + header(message.role), False)
        if message.recipient is not None:
            end = tokenizer.token_id(SPECIAL_TOKENS["recipient"])
            tokens.add([*tokenizer.encode(message.recipient), end], trained)
        for part in message.parts:
            if isinstance(part, TextContent):
                tokens.add(tokenizer.encode(part.text, part.allow_special), trained)
                continue
            tokens.audios.append(part)
            if is_output:
                tokens.add([ids.audio_out_bos, ids.audio_out, ids.audio_eos], trained)
            else:
                tokens.add([ids.audio_bos, ids.audio_in, ids.audio_eos], False)
        turn_continues = is_output and [m.role for m in sample.messages[index + 1 : index + 2]] == ["assistant"]
        end = tokenizer.token_id(SPECIAL_TOKENS["end_of_message"]) if turn_continues else ids.end_of_turn
        tokens.add([end], trained)
    if generate:
        tokens.add(header("assistant") + ([ids.audio_out_bos] if force_audio else []), False)
    return tokens


def system_message(instruction: str, scene: Sequence[str | AudioContent] = ()) -> Message:
    """An instruction and, between special tokens, the scene (text, and audio of speakers)."""
    if not scene:
        return Message("system", instruction)
    start, end = special("scene_start"), special("scene_end")
    body: list[Content] = []
    for is_text, items in groupby(["\n", *scene, "\n"], key=lambda item: isinstance(item, str)):
        adjacent = list(items)
        body += ["".join(adjacent)] if is_text else adjacent
    return Message("system", [f"{instruction}\n\n", start, *body, end])


def special(name: str) -> TextContent:
    """A special token, by its name in `higgs.tokens`."""
    return TextContent(SPECIAL_TOKENS[name], allow_special=True)


def tagged(text: Lines, speakers: Collection[int]) -> str:
    """Lines as `[SPEAKERn] line`; a text stays as it is. Raises ValueError without speakers and for an unknown one."""
    if not speakers:
        raise ValueError("there is no speaker: a description or a reference is needed for each")
    if not isinstance(text, str):
        text = "\n".join(f"[SPEAKER{number}] {line}" for number, line in text)
    if unknown := sorted(set(tags(text)) - set(speakers)):
        raise ValueError(f"lines by speakers {unknown}, but only {sorted(speakers)} are described")
    return text


def tags(text: str) -> list[int]:
    """The distinct numbers n of the `[SPEAKERn]` in a text, ascending."""
    return sorted({int(number) for number in re.findall(r"\[SPEAKER(\d+)\]", text)})


def smart_voice(text: str, scene: str | None = None, speaker: str | None = None) -> ChatMLSample:
    """One speaker without a reference: the model chooses a voice, or follows the description in `speaker`."""
    body = [scene] if scene else []
    if speaker:
        body.append(f"SPEAKER0: {speaker}")
    system = system_message(GENERATE, ["\n\n".join(body)] if body else ())
    return ChatMLSample([system, Message("user", text)])


def voice_clone(text: str, reference_text: str, reference: AudioContent, scene: str | None = None) -> ChatMLSample:
    """`text` in the voice of a reference, which is an earlier turn. No system message without a scene."""
    return _after_references(text, [(reference_text, reference)], scene)


def voices_clone(text: Lines, references: Sequence[tuple[str, AudioContent]], scene: str | None = None) -> ChatMLSample:
    """Several speakers, each by a reference (transcript, audio) in an earlier turn; numbered from 0."""
    return _after_references(tagged(text, range(len(references))), references, scene)


def _after_references(text: str, references: Sequence[tuple[str, AudioContent]], scene: str | None) -> ChatMLSample:
    messages = [system_message(GENERATE, [scene])] if scene else []
    for number, (transcript, audio) in enumerate(references):
        tag = f"[SPEAKER{number}] " if len(references) > 1 else ""
        messages += [Message("user", tag + transcript), Message("assistant", audio)]
    return ChatMLSample([*messages, Message("user", text)])


def voices_in_system(text: Lines, voices: Sequence[str | AudioContent], scene: str | None = None) -> ChatMLSample:
    """Speakers in the system message, numbered from 0: each a description or reference audio."""
    body: list[str | AudioContent] = [f"{scene}\n\n"] if scene else []
    for number, voice in enumerate(voices):
        body += [f"SPEAKER{number}: " if number == 0 else f"\nSPEAKER{number}: ", voice]
    return ChatMLSample([system_message(GENERATE, body), Message("user", tagged(text, range(len(voices))))])


def _described(speakers: dict[int, str]) -> str:
    return "\n".join(f"SPEAKER{number}: {speakers[number]}" for number in sorted(speakers))


def dialogue(lines: Lines, speakers: dict[int, str] | None = None, scene: str | None = None) -> ChatMLSample:
    """Several speakers by description; by default alternately feminine and masculine, as in the reference."""
    if speakers is None:
        numbers = tags(lines) if isinstance(lines, str) else sorted({number for number, _ in lines})
        kinds = ("feminine", "masculine")
        speakers = {number: kinds[index % 2] for index, number in enumerate(numbers)}
    body = (f"{scene}\n\n" if scene else "") + _described(speakers)
    return ChatMLSample([system_message(MULTI_SPEAKER, [body]), Message("user", tagged(lines, speakers))])


def free_dialogue(speakers: dict[int, str], scene: str, seconds: int = 20) -> ChatMLSample:
    """Speakers (`masculine;curious;...`) and a scene: with `force_audio=False` the model writes text and audio."""
    request = f"\nGenerate interleaved transcript and audio that lasts for around {seconds} seconds.\n"
    instruction = [special("instruction_start"), request, special("instruction_end")]
    system = system_message(GENERATE, [f"{_described(speakers)}\n\n{scene}"])
    return ChatMLSample([system, Message("user", instruction)])


def after_chunks(sample: ChatMLSample, chunks: Sequence[tuple[Content | list[Content], AudioContent]]) -> ChatMLSample:
    """`sample`, the prompt of one chunk of a long text, with generated chunks (text, audio) as earlier turns."""
    *context, last = sample.messages
    if last.role != "user":
        raise ValueError(f"the prompt of a chunk ends in the user's message, not the {last.role}'s")
    turns = [m for text, audio in chunks for m in (Message("user", text), Message("assistant", audio))]
    return replace(sample, messages=[*context, *turns, last])
