"""What a client of `/v1/audio/speech` may ask, and in which words it is refused."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from higgs.audio import STREAMED

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "pcm": "audio/pcm",
}
assert MEDIA_TYPES.keys() == STREAMED.keys()
# What OpenAI's interface has and this model has not, and what to do instead.
UNSUPPORTED = {
    "instructions": "the model takes no instructions; describe the scene with `scene`",
    "language": "the model finds the language out by itself",
}


class Refusal(ValueError):
    """A request that cannot be served as it is: an HTTP status, the parameter, and a code for programs."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status

    def body(self) -> dict[str, Any]:
        """As OpenAI's servers put it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class VoiceId(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str


class SpeechRequest(BaseModel):
    """OpenAI's fields, and, from `scene` on, those of this model. Whatever is not named here is refused.

    Without a sampling setting the server's own holds. `response_format` "flac" comes when it is complete, the others
    while they are made; `stream_format` "sse" sends events with base64 audio.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: str
    voice: str | VoiceId
    response_format: Literal["mp3", "opus", "wav", "flac", "pcm"] = "mp3"
    speed: float = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    scene: str | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    temperature: float | None = Field(None, ge=0, le=10)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1)

    @property
    def voice_name(self) -> str:
        return self.voice if isinstance(self.voice, str) else self.voice.id


def refusal_of(errors: list[dict[str, Any]]) -> Refusal:
    """What pydantic found -> the first of it, in words."""
    error = errors[0]
    place = [part for part in error["loc"] if part != "body"]
    name = str(place[0]) if place and isinstance(place[0], str) else None
    if error["type"] == "extra_forbidden" and len(place) == 1:
        fields = ", ".join(SpeechRequest.model_fields)
        why = UNSUPPORTED.get(name, f"there is no such parameter; there are: {fields}")
        return Refusal(f"{name}: {why}", name, "unsupported_parameter")
    if error["type"] == "json_invalid":
        return Refusal(f"the body is not JSON: {error.get('ctx', {}).get('error', '')}")
    if not place:
        return Refusal("the body: expected a JSON object, sent as application/json")
    got = error.get("input")
    got = "" if error["type"] == "missing" or isinstance(got, dict | list) else f", got {got!r:.60}"
    return Refusal(f"{'.'.join(map(str, place))}: {error['msg']}{got}", name, "invalid_value")
