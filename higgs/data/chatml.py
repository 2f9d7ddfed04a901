"""Conversations: what is asked of the model, as messages and as tokens.

A prompt is a list of messages in Llama-3's chat format. Audio in a message of the assistant is audio that the model
speaks (or has spoken); audio in other messages is audio that it hears. Every fragment is tokenised on its own, so that
merges never cross from one to the next, as in the original.
"""

from dataclasses import dataclass, field

from higgs.data.text import TextTokenizer
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


@dataclass(frozen=True)
class TextContent:
    """Text of a message. `<|...|>` strings are text, unless `allow_special` says that they are meant as tokens."""

    text: str
    allow_special: bool = False


@dataclass(frozen=True)
class AudioContent:
    """Audio of a message: the path of a file, or audio that the caller supplies (`audio_url=""`)."""

    audio_url: str = ""


Content = str | TextContent | AudioContent


@dataclass(frozen=True)
class Message:
    role: str
    content: Content | list[Content]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")

    @property
    def parts(self) -> list[TextContent | AudioContent]:
        items = self.content if isinstance(self.content, list) else [self.content]
        return [TextContent(item) if isinstance(item, str) else item for item in items]


@dataclass(frozen=True)
class ChatMLSample:
    """A conversation. Messages before `start_index` are not trained on."""

    messages: list[Message]
    start_index: int = 0

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


def system_message(instruction: str, scene: list[str | AudioContent] | None) -> Message:
    """The system message: an instruction and, between its tokens, the scene (text, and audio of speakers).

    Only the two tokens of the scene are meant as tokens. They are boundaries that no merge crosses, so that the ids
    are those of the whole text.
    """
    if not scene:
        return Message("system", instruction)
    start, end = (
        TextContent(SPECIAL_TOKENS[name], allow_special=True)
        for name in ("scene_start", "scene_end")
    )
    body: list[Content] = []
    for item in ["\n", *scene, "\n"]:
        if isinstance(item, str) and body and isinstance(body[-1], str):
            body[-1] += item
        else:
            body.append(item)
    return Message("system", [f"{instruction}\n\n", start, *body, end])


def smart_voice(text: str, scene: str | None = None, speaker: str | None = None) -> ChatMLSample:
    """One speaker, no reference: the model chooses a voice, or takes the one that `speaker` describes."""
    body = [scene] if scene else []
    if speaker:
        body.append(f"SPEAKER0: {speaker}")
    system = system_message(GENERATE, ["\n\n".join(body)] if body else None)
    return ChatMLSample([system, Message("user", text)])


def voice_clone(
    text: str, reference_text: str, reference: AudioContent, scene: str | None = None
) -> ChatMLSample:
    """Speak `text` in the voice of a reference, which stands as an earlier turn. No system message without a scene."""
    system = [system_message(GENERATE, [scene])] if scene else []
    turns = [
        Message("user", reference_text),
        Message("assistant", reference),
        Message("user", text),
    ]
    return ChatMLSample(system + turns)


def dialogue(
    lines: list[tuple[int, str]], speakers: dict[int, str], scene: str | None = None
) -> ChatMLSample:
    """Several speakers by description; each line is spoken by the speaker of that number.

    Raises ValueError for a line whose speaker is not described.
    """
    unknown = sorted({number for number, _ in lines} - set(speakers))
    if unknown:
        raise ValueError(f"lines by speakers {unknown}, but only {sorted(speakers)} are described")
    described = "\n".join(f"SPEAKER{number}: {speakers[number]}" for number in sorted(speakers))
    body = f"{scene}\n\n{described}" if scene else described
    text = "\n".join(f"[SPEAKER{number}] {line}" for number, line in lines)
    return ChatMLSample([system_message(MULTI_SPEAKER, [body]), Message("user", text)])
