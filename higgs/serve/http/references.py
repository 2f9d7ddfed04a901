"""Voices of a request: names of the folder, and recordings that come with it, which are held in memory alone."""

import asyncio
import ipaddress
import logging
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from higgs.audio import probe, read_mono, resample
from higgs.data.chatml import AudioContent
from higgs.data.voices import Voice, check_recording, read_voices
from higgs.serve.engine import MAX_REFERENCE_SECONDS, Engine
from higgs.serve.http.access import Access
from higgs.serve.http.pages import readable
from higgs.serve.http.speech_request import MAX_SPEAKERS, MAX_TRANSCRIPT, ApiError, Reference, SpeechBody

# Of a recording that a client sends: a small file of silence may hold hours of many channels.
MAX_CHANNELS, MAX_SAMPLE_RATE = 2, 96_000
MAX_CHECKS = 4  # recordings that are checked, or wait for it

# ([L], sample rate, transcript or "") -> what is heard, and warnings about the transcript.
Recogniser = Callable[[Tensor, int, str], tuple[str, list[str]]]

logger = logging.getLogger(__name__)


def voices_now(folder: Path) -> tuple[dict[str, Voice], dict[str, str]]:
    """As `read_voices`; what is wrong with voices is logged, each fault once."""
    voices, faults = read_voices(folder)
    for name, fault in faults.items():
        log_once(f"voice {name} cannot be used: {fault}")
    return voices, faults


@lru_cache(maxsize=1000)
def log_once(message: str) -> None:
    logger.error(message)


class CheckBody(BaseModel):
    """A recording, and what is said in it; without that, what is heard in it is its transcript."""

    model_config = ConfigDict(extra="forbid", strict=True)

    audio: str = Field(min_length=1, description="a WAV, FLAC, MP3 or Ogg file in base64", examples=["UklGRi..."])
    text: str = Field("", max_length=MAX_TRANSCRIPT, description="what is said in it", examples=["Good morning."])


def may_send(request: Request, access: Access) -> bool:
    """Recordings are taken from this machine, or from whoever has the key."""
    if access.api_key is not None:
        return True
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def check_sender(request: Request, access: Access) -> None:
    if not may_send(request, access):
        message = "voice: recordings are taken from this machine alone, unless the server has a key (--api-key)"
        raise ApiError(message, "voice", "recording_refused", 403)


def unusable(voice: Voice, error: Exception | None = None) -> ApiError:
    """A fault of a recording that was sent is told; what is wrong with the folder is logged."""
    if isinstance(voice.audio, AudioContent):
        return ApiError(f"voice: the recording cannot serve as a reference: {error}", "voice", "invalid_value")
    if error is not None:
        log_once(f"voice {voice.name} cannot be used: {error}")
    return ApiError(f"voice: {voice.name!r:.60} cannot be used at present", "voice", "voice_unusable", 500)


def find_voices(body: SpeechBody, voices: dict[str, Voice], faults: dict[str, str]) -> Voice | dict[int, Voice]:
    """-> the voice, or that of each speaker of a dialogue. Raises ApiError."""
    found: list[Voice] = []
    for wanted in body.cast:
        if isinstance(wanted, Reference):
            found.append(Voice("recording", AudioContent(raw_audio=wanted.audio), wanted.text))
            continue
        name = unicodedata.normalize("NFC", wanted)
        if name in faults:
            raise unusable(Voice(name))
        if name not in voices:
            message = f"voice: no {name!r:.60}; there are: {', '.join(voices)}"
            raise ApiError(message, "voice", "voice_not_found")
        found.append(voices[name])
    return dict(enumerate(found)) if isinstance(body.voice, list) else found[0]


def encode(voice: Voice, engine: Engine) -> Tensor:
    """The codes [K, T] of a voice's recording, which is decoded once.

    Raises ApiError, also for a recording of the request that `higgs voices add` would not take.
    """
    try:
        if not isinstance(voice.audio, AudioContent):
            return engine.reference_codes(voice.reference)
        content = voice.audio.content()
        check_size(content)
        waveform, rate, _ = decoded = read_mono(content)
        if fatal := [f.message for f in check_recording(content, voice.transcript, decoded) if f.fatal]:
            raise ValueError("; ".join(fatal))
        return engine.encode_reference(resample(waveform, rate, engine.tokenizer.sample_rate))
    except (ValueError, OSError) as error:
        raise unusable(voice, error) from error


def check_size(content: bytes) -> float:
    """-> seconds of an audio file, before it is decoded. Raises ValueError for more than a reference has."""
    rate, channels, seconds = probe(content)
    for value, most, unit in (
        (seconds, MAX_REFERENCE_SECONDS, "s"),
        (channels, MAX_CHANNELS, "channels"),
        (rate, MAX_SAMPLE_RATE, "Hz"),
    ):
        if value > most:
            raise ValueError(f"at most {most:g} {unit} are taken, got {value:g}")
    return seconds


def check(body: CheckBody, recogniser: Recogniser | None) -> dict[str, Any]:
    """Seconds, findings as those of `higgs voices check`, and what was heard (None without a recogniser).

    Raises ValueError for what is no recording.
    """
    content, text = AudioContent(raw_audio=body.audio).content(), body.text.strip()
    seconds, decoded, transcript, doubts = check_size(content), None, None, []
    if recogniser is not None:
        waveform, rate, _ = decoded = read_mono(content)
        transcript, doubts = recogniser(waveform, rate, text)
    findings = check_recording(content, text or transcript or None, decoded)
    found = [{"fatal": finding.fatal, "message": finding.message} for finding in findings]
    found += [{"fatal": False, "message": message} for message in doubts]
    return {"seconds": seconds, "findings": found, "transcript": transcript}


def add_references(app: FastAPI, access: Access, config: Any, max_body: int) -> None:
    """`config` is the app's `ServerConfig`, with no setting left to the checkpoint."""
    one_at_a_time, waiting = asyncio.Lock(), 0

    @readable(app, "/v1/audio/settings")
    def settings(request: Request) -> dict:
        """What a request gets that says nothing, and what it may ask for."""
        sampling = {name: getattr(config.sampling, name) for name in ("temperature", "top_k", "top_p", "seed")}
        limits = {name: getattr(config, name) for name in ("max_new_tokens", "max_characters", "max_seconds")}
        limits |= {"max_speakers": MAX_SPEAKERS, "max_body_bytes": max_body, "reference_seconds": MAX_REFERENCE_SECONDS}
        references = {"references": may_send(request, access), "transcribes": config.recogniser is not None}
        return {"model": config.model, "max_words": config.chunks.max_words} | sampling | limits | references

    @app.post("/v1/audio/voices/check")
    async def check_voice(body: CheckBody, request: Request) -> dict:
        """Whether a recording will do as a voice, and what is heard in it. Nothing of it stays."""
        nonlocal waiting
        check_sender(request, access)
        if waiting >= MAX_CHECKS:
            raise ApiError(f"{waiting} recordings are being checked; try again later", code="busy", status=429)
        waiting += 1
        try:
            async with one_at_a_time:
                return await asyncio.to_thread(check, body, config.recogniser)
        except ValueError as error:
            raise ApiError(f"audio: {error}", "audio", "invalid_value") from error
        finally:
            waiting -= 1
