"""Conversations: what is asked of the model, as messages and as tokens.

A prompt is a list of messages in Llama-3's chat format. Audio in a message of the assistant is audio that the model
speaks (or has spoken); audio in other messages is audio that it hears. Every fragment is tokenised on its own, so that
merges never cross from one to the next, as in the original.
"""

import base64
import binascii
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from torch import Tensor

from higgs.audio import load_audio, resample
from higgs.data.text.checks import check_text
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
NOT_HERE = ("", "placeholder")  # as an `audio_url`: the caller supplies the codes


@dataclass(frozen=True)
class TextContent:
    """Text of a message. `<|...|>` strings are text, unless `allow_special` says that they are meant as tokens."""

    text: str
    allow_special: bool = False


@dataclass(frozen=True)
class AudioContent:
    """Audio of a message: the path of a file, a whole file in base64, or neither, when the caller supplies its codes.

    `offset` and `duration` cut a stretch out of it, in seconds. `row_id` is the caller's own, kept and not read.
    """

    audio_url: str = ""
    raw_audio: str | None = None
    offset: float | None = None
    duration: float | None = None
    row_id: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= (self.offset or 0) < math.inf:
            raise ValueError(f"offset must be 0 or more seconds, got {self.offset}")
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise ValueError(f"duration must be more than 0 seconds, got {self.duration}")

    @property
    def here(self) -> bool:
        return self.audio_url not in NOT_HERE or self.raw_audio is not None

    @property
    def name(self) -> str:
        """What its codes are kept under: the url and, as a media fragment, the stretch (`a.wav#t=1.5,4`)."""
        start = self.offset or 0.0
        end = "" if self.duration is None else f",{start + self.duration:.6g}"
        return f"{self.audio_url}#t={start:.6g}{end}" if start or end else self.audio_url

    def load(self, sample_rate: int, folder: str | Path = ".") -> Tensor:
        """-> [L] float32 at `sample_rate`: the file (found from `folder`) or `raw_audio`, cut to the stretch.

        Raises ValueError for audio that is not here or not readable, and for a stretch beyond its end.
        """
        if not self.here:
            raise ValueError("the conversation holds audio without a file, and no reference_codes for it")
        if self.audio_url in NOT_HERE:
            try:
                content = base64.b64decode(self.raw_audio, validate=True)
            except binascii.Error as error:
                raise ValueError(f"raw_audio is not base64: {error}") from error
            with NamedTemporaryFile(prefix="raw_audio-") as file:
                file.write(content)
                file.flush()
                waveform, rate = load_audio(file.name)
        else:
            waveform, rate = load_audio(Path(folder) / self.audio_url)
        start = round((self.offset or 0) * rate)
        stop = len(waveform) if self.duration is None else start + round(self.duration * rate)
        if not start < stop <= len(waveform):
            raise ValueError(
                f"{self.name or 'raw_audio'}: seconds {start / rate:g} to {stop / rate:g} of audio that "
                f"has {len(waveform) / rate:g}"
            )
        return resample(waveform[start:stop], rate, sample_rate)


Content = str | TextContent | AudioContent
# What several speakers say: (number, line), or a text with `[SPEAKERn]` tags.
Lines = str | Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Message:
    """What one role says; `recipient` is whom an assistant's message is for.

    Raises ValueError for a text that cannot be spoken (see `check_text`); a message with audio needs none.
    """

    role: str
    content: Content | list[Content]
    recipient: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if self.recipient is not None and self.role != "assistant":
            raise ValueError(f"only the assistant's messages have a recipient, not the {self.role}'s")
        texts = [part.text for part in self.parts if isinstance(part, TextContent)]
        if (text := "".join(texts)) or len(texts) == len(self.parts):
            check_text(text)

    @property
    def parts(self) -> list[TextContent | AudioContent]:
        items = self.content if isinstance(self.content, list) else [self.content]
        return [TextContent(item) if isinstance(item, str) else item for item in items]


@dataclass(frozen=True)
class ChatMLSample:
    """A conversation. Messages before `start_index` are not trained on; `misc` and `speaker` are the caller's."""

    messages: list[Message]
    start_index: int = 0
    speaker: str | None = None
    misc: dict[str, Any] | None = None

    @property
    def speaker_id(self) -> str | None:
        return self.speaker if self.speaker is not None else (self.misc or {}).get("speaker")

    @property
    def audios(self) -> list[AudioContent]:
        """Every audio in order: the k-th belongs to the k-th placeholder."""
        return [p for m in self.messages for p in m.parts if isinstance(p, AudioContent)]


@dataclass
class Tokens:
    """A tokenised conversation; one placeholder for each audio. Labels of what is not trained are -100."""

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, ids: list[int], trained: bool) -> None:
        self.input_ids += ids
        self.labels += ids if trained else [IGNORE] * len(ids)


def tokenize(
    sample: ChatMLSample, tokenizer: TextTokenizer, generate: bool = False, force_audio: bool = True
) -> Tokens:
    """-> the prompt's tokens. `generate` ends it with the assistant's header, `force_audio` with audio's start."""
    ids, tokens = TokenIds.of(tokenizer), Tokens()
    blank_line = tokenizer.encode("\n\n")

    def header(role: str) -> list[int]:
        return [ids.start_header, *tokenizer.encode(role), ids.end_header, *blank_line]

    for index, message in enumerate(sample.messages):
        spoken = message.role == "assistant"
        trained = spoken and index >= sample.start_index
        tokens.add(([ids.begin_of_text] if index == 0 else []) + header(message.role), False)
        if message.recipient is not None:
            end = tokenizer.token_id(SPECIAL_TOKENS["recipient"])
            tokens.add([*tokenizer.encode(message.recipient), end], trained)
        for part in message.parts:
            if isinstance(part, TextContent):
                tokens.add(tokenizer.encode(part.text, part.allow_special), trained)
            elif spoken:
                tokens.add([ids.audio_out_bos, ids.audio_out, ids.audio_eos], trained)
            else:
                tokens.add([ids.audio_bos, ids.audio_in, ids.audio_eos], False)
        following = sample.messages[index + 1 : index + 2]
        if spoken and following and following[0].role == "assistant":
            tokens.add([tokenizer.token_id(SPECIAL_TOKENS["end_of_message"])], trained)
        else:
            tokens.add([ids.end_of_turn], trained)
    if generate:
        tokens.add(header("assistant") + ([ids.audio_out_bos] if force_audio else []), False)
    return tokens


def system_message(instruction: str, scene: Sequence[str | AudioContent] = ()) -> Message:
    """The system message: an instruction and, between its tokens, the scene (text, and audio of speakers).

    Only the two tokens of the scene are meant as tokens. They are boundaries that no merge crosses, so that the ids
    are those of the whole text.
    """
    if not scene:
        return Message("system", instruction)
    start, end = (special(name) for name in ("scene_start", "scene_end"))
    body: list[Content] = []
    for item in ["\n", *scene, "\n"]:
        if isinstance(item, str) and body and isinstance(body[-1], str):
            body[-1] += item
        else:
            body.append(item)
    return Message("system", [f"{instruction}\n\n", start, *body, end])


def special(name: str) -> TextContent:
    """A special token, by its name in `higgs.tokens`."""
    return TextContent(SPECIAL_TOKENS[name], allow_special=True)


def tagged(text: Lines, speakers: Collection[int]) -> str:
    """What is to be said, as the user's message has it: lines become `[SPEAKERn] line`, a text stays as it is.

    Raises ValueError without any speaker, and for a tag of nobody among `speakers`.
    """
    if not speakers:
        raise ValueError("there is no speaker: a description or a reference is needed for each")
    if not isinstance(text, str):
        text = "\n".join(f"[SPEAKER{number}] {line}" for number, line in text)
    if unknown := sorted(set(tags(text)) - set(speakers)):
        raise ValueError(f"lines by speakers {unknown}, but only {sorted(speakers)} are described")
    return text


def tags(text: str) -> list[int]:
    """The numbers n of the `[SPEAKERn]` in a text, each once, in order of size."""
    return sorted({int(number) for number in re.findall(r"\[SPEAKER(\d+)\]", text)})


def smart_voice(text: str, scene: str | None = None, speaker: str | None = None) -> ChatMLSample:
    """One speaker, no reference: the model chooses a voice, or takes the one that `speaker` describes."""
    body = [scene] if scene else []
    if speaker:
        body.append(f"SPEAKER0: {speaker}")
    system = system_message(GENERATE, ["\n\n".join(body)] if body else ())
    return ChatMLSample([system, Message("user", text)])


def voice_clone(text: str, reference_text: str, reference: AudioContent, scene: str | None = None) -> ChatMLSample:
    """Speak `text` in the voice of a reference, which stands as an earlier turn. No system message without a scene."""
    turns = [*_reference_turns([(reference_text, reference)]), Message("user", text)]
    return ChatMLSample(_scene_only(scene) + turns)


def voices_clone(text: Lines, references: Sequence[tuple[str, AudioContent]], scene: str | None = None) -> ChatMLSample:
    """Several speakers, each by a reference (what is said in it, the audio) in an earlier turn; numbered from 0."""
    said = Message("user", tagged(text, range(len(references))))
    return ChatMLSample([*_scene_only(scene), *_reference_turns(references), said])


def _scene_only(scene: str | None) -> list[Message]:
    return [system_message(GENERATE, [scene])] if scene else []


def _reference_turns(references: Sequence[tuple[str, AudioContent]]) -> list[Message]:
    several = len(references) > 1
    return [
        message
        for number, (said, audio) in enumerate(references)
        for message in (
            Message("user", f"[SPEAKER{number}] {said}" if several else said),
            Message("assistant", audio),
        )
    ]


def voices_in_system(text: Lines, voices: Sequence[str | AudioContent], scene: str | None = None) -> ChatMLSample:
    """Speakers in the system message, numbered from 0: each a description or a reference that the model hears."""
    body: list[str | AudioContent] = [f"{scene}\n\n"] if scene else []
    for number, voice in enumerate(voices):
        body += [f"SPEAKER{number}: " if number == 0 else f"\nSPEAKER{number}: ", voice]
    said = Message("user", tagged(text, range(len(voices))))
    return ChatMLSample([system_message(GENERATE, body), said])


def dialogue(lines: Lines, speakers: dict[int, str] | None = None, scene: str | None = None) -> ChatMLSample:
    """Several speakers by description; each line is spoken by the speaker of that number.

    Without `speakers` they are feminine and masculine by turns, in order of their numbers, as in the original. Raises
    ValueError for a line whose speaker is not described.
    """
    if speakers is None:
        numbers = tags(lines) if isinstance(lines, str) else sorted({number for number, _ in lines})
        kinds = ("feminine", "masculine")
        speakers = {number: kinds[index % 2] for index, number in enumerate(numbers)}
    described = _described(speakers)
    body = f"{scene}\n\n{described}" if scene else described
    text = tagged(lines, speakers)
    return ChatMLSample([system_message(MULTI_SPEAKER, [body]), Message("user", text)])


def _described(speakers: dict[int, str]) -> str:
    return "\n".join(f"SPEAKER{number}: {speakers[number]}" for number in sorted(speakers))


def free_dialogue(speakers: dict[int, str], scene: str, seconds: int = 20) -> ChatMLSample:
    """Speakers (`masculine;curious;...`) and a scene: the model writes what they say and speaks it, in turns.

    For generation with `force_audio=False`: the answer starts with text.
    """
    wish = f"\nGenerate interleaved transcript and audio that lasts for around {seconds} seconds.\n"
    asked = [special("instruction_start"), wish, special("instruction_end")]
    system = system_message(GENERATE, [f"{_described(speakers)}\n\n{scene}"])
    return ChatMLSample([system, Message("user", asked)])


def after_chunks(
    sample: ChatMLSample,
    spoken: Sequence[tuple[Content | list[Content], AudioContent]],
    keep: int | None = None,
) -> ChatMLSample:
    """The prompt for one chunk of a long text, behind the chunks (text, audio) that are spoken already.

    `sample` is the prompt for this chunk alone, in any form: its references stay, and of the earlier chunks the last
    `keep` (None: all). Audio in order: that of `sample`, then that of the chunks.
    """
    if keep is not None and keep < 0:
        raise ValueError(f"keep must be 0 or more chunks, or None for all, got {keep}")
    *context, last = sample.messages
    if last.role != "user":
        raise ValueError(f"the prompt of a chunk ends in the user's message, not the {last.role}'s")
    recent = spoken if keep is None else spoken[max(0, len(spoken) - keep) :]
    turns = [m for text, audio in recent for m in (Message("user", text), Message("assistant", audio))]
    return replace(sample, messages=[*context, *turns, last])
