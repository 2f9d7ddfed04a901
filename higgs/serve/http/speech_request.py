"""The body of a `/v1/audio/speech` request, and the errors that answer it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from higgs.data.text.folding import check_text

Text = Annotated[str, AfterValidator(check_text)]
MAX_SPEAKERS, MAX_TRANSCRIPT = 10, 1500  # of a dialogue; characters of what is said in a reference

# OpenAI's parameters that this model lacks, and what to do instead.
UNSUPPORTED = {
    "instructions": "the model takes no instructions; describe the scene with `scene`",
    "language": "the model finds the language out by itself",
}
# Their values that ask for nothing.
NEUTRAL = [("instructions", ""), ("stream", False), ("language", "")]


class ApiError(Exception):
    """An error answer: HTTP status, the parameter at fault, and a code for programs."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def timed_out() -> ApiError:
    return ApiError("the request took too long", code="timeout", status=504)


class VoiceId(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str


class Reference(BaseModel):
    """A recording to imitate, which lives no longer than its request: the whole file in base64, and its transcript."""

    model_config = ConfigDict(extra="forbid", strict=True)

    audio: str = Field(min_length=1, description="a WAV, FLAC, MP3 or Ogg file in base64")
    text: Text = Field(max_length=MAX_TRANSCRIPT, description="what is said in it, word for word")


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "reference" if value.keys() & Reference.model_fields.keys() else "id"
    return {str: "name", VoiceId: "id", Reference: "reference", list: "cast"}.get(type(value), "other")


BY_KIND = Discriminator(_kind, custom_error_type="voice", custom_error_message=(
    'expected a name, {"id": NAME}, {"audio": BASE64, "text": TRANSCRIPT}, or a list with a voice for each [SPEAKERn]'
))  # fmt: skip
OneVoice = Annotated[str, Tag("name")] | Annotated[VoiceId, Tag("id")] | Annotated[Reference, Tag("reference")]
Cast = Annotated[list[Annotated[OneVoice, BY_KIND]], Field(min_length=1, max_length=MAX_SPEAKERS), Tag("cast")]
KINDS = ("name", "id", "reference", "cast")


class SpeechBody(BaseModel):
    """OpenAI's fields and, from `timestamps` on, this model's. Unknown fields are refused.

    A sampling setting that is None is the server's. `response_format` "flac" is sent when complete, the others as they
    are made; `stream_format` "sse" sends events with base64 audio.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, body: Any) -> Any:
        """Null is absent, and so are OpenAI's parameters at values that ask for nothing."""
        if not isinstance(body, dict):
            return body
        return {k: v for k, v in body.items() if v is not None and (k, v) not in NEUTRAL}

    model: str = Field(description="the name that `/v1/models` lists", examples=["nano"])
    input: Text = Field(
        description="what to say; `[SPEAKER0] ...` lines are a dialogue", examples=["The train is late."]
    )
    voice: Annotated[OneVoice | Cast, BY_KIND] = Field(
        description="a name of `/v1/audio/voices`, or a recording; a list of them is the cast of a dialogue",
        examples=["ada", ["ada", "ben"]],
    )
    response_format: Literal["mp3", "opus", "wav", "flac", "pcm"] = Field("mp3", description="of the audio")
    speed: float = Field(1.0, description="1.0 alone is supported")
    stream_format: Literal["audio", "sse"] = Field("audio", description="sse: events with base64 audio")
    timestamps: bool = Field(
        False,
        description="with `sse` alone: an event `speech.audio.words` after the audio, with the start and end of each",
    )
    scene: Text | None = Field(None, description="where it is spoken", examples=["A quiet room."])
    normalize: bool = Field(
        True, description="take markup off; read numbers, dates, money, units and abbreviations as words"
    )
    seed: int | None = Field(None, ge=0, lt=1 << 63, description="null: the server's", examples=[1])
    temperature: float | None = Field(None, ge=0, le=10, description="0 is greedy", examples=[0.4])
    top_k: int | None = Field(None, ge=0, description="draw among so many codes; 0 is all", examples=[20])
    top_p: float | None = Field(None, gt=0, le=1, description="draw among codes of this share", examples=[0.95])
    max_new_tokens: int | None = Field(None, ge=1, description="of each chunk; 25 are a second", examples=[250])

    @property
    def cast(self) -> list[str | Reference]:
        """Names and recordings; one, unless `voice` is a list."""
        voices = self.voice if isinstance(self.voice, list) else [self.voice]
        return [voice.id if isinstance(voice, VoiceId) else voice for voice in voices]


def validation_error(errors: list[dict[str, Any]]) -> ApiError:
    """pydantic's errors -> an answer to the first of them. What the client sent is quoted up to 60 characters."""
    error = errors[0]
    loc = error["loc"][1:]  # after "body"
    name = loc[0][:60] if loc and isinstance(loc[0], str) else None
    if error["type"] == "extra_forbidden" and len(loc) == 1:
        fields = ", ".join(SpeechBody.model_fields)
        why = UNSUPPORTED.get(name, f"there is no such parameter; there are: {fields}")
        return ApiError(f"{name}: {why}", name, "unsupported_parameter")
    if error["type"] == "json_invalid":
        why = error.get("ctx", {}).get("error", "")
        return ApiError(f"the body is not JSON: {why}", code="invalid_value")
    if not loc:
        message = "the body: expected a JSON object, sent as application/json"
        return ApiError(message, code="invalid_value")
    got = error.get("input")
    got = "" if error["type"] == "missing" or isinstance(got, dict | list) else f", got {got!r:.60}"
    place = ".".join(f"{part!s:.60}" for part in loc if name != "voice" or part not in KINDS)
    message = error["msg"].removeprefix("Value error, ")
    return ApiError(f"{place}: {message}{got}", name, "invalid_value")
