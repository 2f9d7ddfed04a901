"""The streamed body of a `/v1/audio/speech` answer."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from higgs.serve.captions import Record
from higgs.serve.http.audio_encoder import MEDIA_TYPES
from higgs.serve.http.speech_request import timed_out


def events(data: bytes, stop_reason: str | None, seconds: float, words: Sequence[Record] | None = None) -> bytes:
    """Server-sent events as OpenAI's: `speech.audio.delta` with base64, at the end `speech.audio.done`.

    Between them, where there is a list of words, `speech.audio.words`.
    """
    delta = {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}
    done = {"type": "speech.audio.done", "stop_reason": stop_reason, "usage": {"audio_seconds": seconds}}
    timed = {"type": "speech.audio.words", "words": words}
    sent = [event for event, some in ((delta, data), (timed, words is not None), (done, stop_reason)) if some]
    return b"".join(format_sse_event(data_str=json.dumps(event)) for event in sent)


class SpeechResponse(StreamingResponse):
    """A streamed body whose headers wait for its first part: an error before it is an answer with its own status.

    An error after it closes the connection; so does the end of `seconds`, also where the client does not read. The body
    is closed in every case, which frees the slot. A FLAC file is one part, so its length and `late_headers` are known.
    """

    def __init__(self, body: AsyncIterator[bytes], seconds: float, late_headers: dict[str, str], **more):
        super().__init__(body, **more)
        self.seconds, self.late_headers = seconds, late_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # The engine has the same deadline; this one, a second later, is for a client that does not read.
            async with aclosing(self.body_iterator), asyncio.timeout(self.seconds + 1):
                await super().__call__(scope, receive, send)
        except TimeoutError as error:
            raise timed_out() from error

    async def stream_response(self, send: Send) -> None:
        first = await anext(self.body_iterator)
        if self.media_type == MEDIA_TYPES["flac"]:
            self.headers.update(self.late_headers | {"content-length": str(len(first))})
        self.body_iterator = _chain(first, self.body_iterator)
        await super().stream_response(send)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part
