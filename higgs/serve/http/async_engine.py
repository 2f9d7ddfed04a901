"""`AsyncEngine`: an `Engine` for asyncio. One thread runs the scheduler; a pool prepares prompts and decodes audio.

Nothing blocks the event loop. A request that ends early (error, timeout, client gone) frees its slot before the next
decode steps.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from higgs.data.speech import SpeechRequest
from higgs.serve.batching.scheduler import QueueFull, Sequence
from higgs.serve.engine import Engine
from higgs.serve.stream import AudioChunk, AudioStream

T = TypeVar("T")
MAX_FAILURES = 3  # consecutive failures of the scheduler before the engine is dead

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
        self._failures = 0
        self._subscribers: dict[Sequence, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self._lock = threading.Lock()
        self._work, self._closing = threading.Event(), False
        self._pool = ThreadPoolExecutor(workers, "higgs-audio")
        self._thread = threading.Thread(target=self._run, name="higgs-scheduler", daemon=True)
        self._thread.start()

    @property
    def max_open(self) -> int:
        return self.engine.config.max_batch + self.engine.config.max_waiting

    @property
    def healthy(self) -> bool:
        return self.error is None and self._thread.is_alive()

    def close(self) -> None:
        """Joins the threads; open requests raise EngineDead."""
        self._closing = True
        self._work.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    async def stream(self, request: SpeechRequest, seconds: float | None = None) -> AsyncIterator[AudioChunk]:
        """A request without text chunks -> chunks of waveform as they become final; the last has a `stop_reason`.

        Raises QueueFull at once when `max_open` requests are open, ValueError as `Engine.stream`, TimeoutError after
        `seconds`, EngineDead, and whatever the engine fails with.
        """
        if not self.healthy or self._closing:
            raise EngineDead(f"the engine has stopped: {self.error or 'it is being closed'}")
        if self.open >= self.max_open:
            raise QueueFull(f"{self.open} requests are open; this server takes {self.max_open}")
        deadline = None if seconds is None else time.monotonic() + seconds
        self.open += 1
        sequence = None
        try:
            (sample,), settings = request.samples, (request.sampling, request.max_new_tokens)
            prepared = await self._in_pool(deadline, self.engine.sequence, sample, *settings)
            sequence = self.scheduler.submit(prepared)
            audio, ready = AudioStream(self.engine.tokenizer), self._subscribe(sequence)
            done = False
            while not done:
                await self._before(deadline, ready.wait())
                ready.clear()
                done = sequence.done  # before `read_new`, which then returns the rest
                chunks = await self._in_pool(deadline, lambda: list(audio.push(sequence.read_new())))
                for chunk in chunks:
                    yield chunk
            yield await self._in_pool(deadline, audio.finish, sequence.finished, sequence.stop_reason)
        finally:
            self.open -= 1
            if sequence is not None:
                self.scheduler.cancel(sequence)
                with self._lock:
                    self._subscribers.pop(sequence, None)

    async def _in_pool(self, deadline: float | None, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await self._before(deadline, loop.run_in_executor(self._pool, work, *arguments))

    @staticmethod
    async def _before(deadline: float | None, awaitable: Awaitable[T]) -> T:
        left = None if deadline is None else deadline - time.monotonic()
        return await asyncio.wait_for(awaitable, left)

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
        """The engine is dead: open requests end with this error, and no new ones are taken."""
        self.error = error
        with self._lock:
            sequences = list(self._subscribers)
        for sequence in sequences:
            if not sequence.done:
                sequence.error, sequence.stop_reason = error, "error"
        self._notify()
