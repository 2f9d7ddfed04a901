"""`AsyncEngine`: an `Engine` for asyncio. One thread runs the scheduler; a pool prepares prompts and decodes audio.

Nothing blocks the event loop. A request that ends early (error, timeout, client gone) frees its slot before the next
decode steps.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from higgs.data.chatml import AudioContent
from higgs.data.speech import SpeechRequest
from higgs.serve.alignment import times_of
from higgs.serve.batching.scheduler import QueueFull, Sequence
from higgs.serve.captions import Record
from higgs.serve.engine import Engine
from higgs.serve.long_form import FADE_SECONDS, SilentChunkError, StreamFade, chunk_seeds, chunk_sequence
from higgs.serve.stream import AudioChunk, AudioStream

MAX_FAILURES = 3  # consecutive failures of the scheduler before the engine is dead
MAX_WEIGHTS = 1 << 28  # numbers that an alignment may hold, 1 GiB
ReferenceCodes = Callable[[AudioContent], Tensor]  # [K, T] of a recording

logger = logging.getLogger(__name__)


class EngineDead(RuntimeError):
    """The engine failed MAX_FAILURES times in a row or was closed; it takes no more requests."""


class AsyncEngine:
    """`async for chunk in AsyncEngine(engine).stream(request)`: `Engine.stream`, many at once.

    `stream` is called from one event loop. `close` ends the threads and the open requests.
    """

    def __init__(self, engine: Engine, workers: int = 2):
        self.engine, self.scheduler = engine, engine.scheduler
        self.open = 0  # requests that `stream` is serving, queued ones included
        self.error: Exception | None = None  # why the engine is dead
        self.draining = False
        self._failures = 0
        self._subscribers: dict[Sequence, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self._lock = threading.RLock()  # a signal may interrupt who holds it, and `drain` takes it again
        self._work, self._closing = threading.Event(), False
        self._pool = ThreadPoolExecutor(workers, "higgs-audio")
        # One at a time, so that they never take the threads that decode audio for others.
        self._alignments = ThreadPoolExecutor(1, "higgs-words")
        self._thread = threading.Thread(target=self._run, name="higgs-scheduler", daemon=True)
        self._thread.start()

    @property
    def max_open(self) -> int:
        return self.engine.config.max_batch + self.engine.config.max_waiting

    @property
    def healthy(self) -> bool:
        return self.error is None and self._thread.is_alive()

    def drain(self) -> None:
        """From now on requests are refused, those that wait for a slot end, and those in one go on. Thread-safe."""
        self.draining = True
        self.scheduler.reject_waiting(EngineDead("the server is stopping"))
        self._notify()

    def close(self) -> None:
        """Joins the threads; open requests raise EngineDead."""
        self._closing = True
        self._work.set()
        self._thread.join()
        for pool in (self._pool, self._alignments):
            pool.shutdown(cancel_futures=True)

    @contextmanager
    def admission(self) -> Iterator[None]:
        """A place among the open requests, taken before any work for one. Raises QueueFull at once, and EngineDead."""
        self._check_alive()
        if self.open >= self.max_open:
            raise QueueFull(f"{self.open} requests are open; this server takes {self.max_open}")
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def _check_alive(self) -> None:
        if not self.healthy or self._closing or self.draining:
            raise EngineDead(f"the engine has stopped: {self.error or 'the server is stopping'}")

    async def stream(
        self,
        request: SpeechRequest,
        deadline: float | None = None,
        admitted: bool = False,
        reference_codes: ReferenceCodes | None = None,
    ) -> AsyncIterator[AudioChunk]:
        """Chunks of waveform as they become final; the last one has a `stop_reason`.

        A long text is spoken chunk by chunk, as by `higgs.serve.long_form.speak`, but without matching levels; a chunk
        that was cut off is not spoken again, and its reason is that of the request. `deadline` is a time of the loop.
        `admitted` requests have a place already, and `reference_codes` are known. Raises QueueFull as `admission`,
        ValueError as `speak`, TimeoutError at the deadline, and EngineDead.
        """
        self._check_alive()
        read = reference_codes or cache(self.engine.reference_codes)  # a file is read once
        with nullcontext() if admitted else self.admission():
            sample, settings = request.samples[0], (request.sampling, request.max_new_tokens)
            make = partial(self.engine.sequence, sample, *settings, map(read, sample.audios))
            single = self._sequence(deadline, make)
            async with aclosing(self._chunks(request, deadline, read) if request.chunks else single) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _sequence(self, deadline: float | None, make: Callable[[], Sequence]) -> AsyncIterator[AudioChunk]:
        """One sequence, which `make` tokenizes."""
        sequence = await self._in_pool(deadline, make)
        self.scheduler.submit(sequence)
        try:
            audio, ready = AudioStream(self.engine.tokenizer), self._subscribe(sequence)
            done = False
            while not done:
                async with asyncio.timeout_at(deadline):
                    await ready.wait()
                ready.clear()
                done = sequence.done  # before `read_new`, which then returns the rest
                for chunk in await self._in_pool(deadline, lambda: list(audio.push(sequence.read_new()))):
                    yield chunk
            yield await self._in_pool(deadline, audio.finish, sequence.finished, sequence.stop_reason)
        finally:
            self.scheduler.cancel(sequence)
            with self._lock:
                self._subscribers.pop(sequence, None)

    async def _chunks(
        self, request: SpeechRequest, deadline: float | None, read: ReferenceCodes
    ) -> AsyncIterator[AudioChunk]:
        """The sequences of a text's chunks, one after another, with pauses between them."""
        engine, options = self.engine, request.options
        sampling, rate = request.sampling or engine.generation.sampling, engine.tokenizer.sample_rate
        none = torch.zeros(engine.tokenizer.num_codebooks, 0, dtype=torch.long)
        generated: list[Tensor] = []
        start, stop_reason = 0, "stop"
        for index, chunk in enumerate(request.chunks):
            codes = [await self._in_pool(deadline, read, a) for a in request.samples[index].audios]
            fade, frames, last = StreamFade(round(FADE_SECONDS * rate)), [], "stop"
            for seed in chunk_seeds(sampling.seed, index, options):
                settings = (request, index, replace(sampling, seed=seed), codes, generated)
                async with aclosing(self._sequence(deadline, partial(chunk_sequence, engine, *settings))) as parts:
                    async for part in parts:
                        if part.codes.shape[1] and not frames and (pause := options.pause(chunk.boundary)):
                            yield AudioChunk(torch.zeros(round(pause * rate)), none, start, rate)
                        frames.append(part.codes)
                        last = part.stop_reason or last
                        if len(final := fade.push(part.waveform)):
                            yield AudioChunk(final, part.codes, start + part.start, rate, part=index)
                generated.append(torch.cat(frames, dim=1))
                if generated[-1].shape[1]:
                    break
                generated.pop()
                frames.clear()
            else:
                raise SilentChunkError(request.chunks, index)
            start += generated[-1].shape[1]
            stop_reason = last if stop_reason == "stop" else stop_reason
            ended = stop_reason if index + 1 == len(request.chunks) else None
            yield AudioChunk(fade.finish(), none, start, rate, ended)

    async def word_times(
        self,
        request: SpeechRequest,
        parts: Mapping[int, tuple[float, list[Tensor]]],
        deadline: float,
        reference_codes: ReferenceCodes,
    ) -> list[Record]:
        """When each word of a request was spoken, as `times_of`; `parts` are the `part` numbers of its chunks of audio,
        each with the second at which it begins and its codes [K, T].

        Parts that could not be aligned until the loop's time is `deadline` have no words. Nothing is raised.
        """
        words: list[Record] = []
        for index, (begin, segments) in parts.items():
            codes = torch.cat(segments, dim=1)
            span, sample = (codes.shape[1], begin), request.samples[index]
            arguments = (self.engine, [sample], codes, [span], MAX_WEIGHTS, reference_codes)
            try:
                async with asyncio.timeout_at(deadline):
                    loop = asyncio.get_running_loop()
                    words += await loop.run_in_executor(self._alignments, times_of, *arguments)
            except TimeoutError:
                break
            except Exception:
                logger.exception("the words of a request could not be aligned")
        return words

    async def _in_pool(self, deadline: float | None, work: Callable[..., Any], *arguments: Any) -> Any:
        async with asyncio.timeout_at(deadline):
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _subscribe(self, sequence: Sequence) -> asyncio.Event:
        """-> an event that is set when the sequence has something new, or has ended."""
        ready = asyncio.Event()
        with self._lock:
            self._subscribers[sequence] = (asyncio.get_running_loop(), ready)
        if self.error is not None:  # the engine died after `stream` had looked
            self._fail(self.error)
        self._notify()  # the scheduler may have run before
        self._work.set()
        return ready

    def _notify(self) -> None:
        with self._lock:
            subscribers = list(self._subscribers.items())
        for sequence, (loop, ready) in subscribers:
            if sequence.has_new and not loop.is_closed():
                loop.call_soon_threadsafe(ready.set)

    def _run(self) -> None:
        while not self._closing:
            self._work.wait()
            self._work.clear()
            while not self._closing and self.error is None and not self.scheduler.idle:
                self._run_steps()
                self._notify()
        self._fail(EngineDead("the engine was closed"))

    def _run_steps(self) -> None:
        try:
            self.scheduler.run_steps()
            self._failures = 0
        except Exception as error:  # the running sequences end with it
            self._failures += 1
            logger.exception("the scheduler failed (%d times in a row)", self._failures)
            if self._failures >= MAX_FAILURES:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """The engine is dead: open requests end with EngineDead, and no new ones are taken."""
        self.error = error
        dead = error if isinstance(error, EngineDead) else EngineDead(f"the engine has stopped: {error}")
        with self._lock:
            sequences = list(self._subscribers)
        for sequence in sequences:
            if not sequence.done:
                sequence.error, sequence.stop_reason = dead, "error"
        self._notify()
