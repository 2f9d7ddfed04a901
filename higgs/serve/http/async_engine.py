"""An engine for asyncio: one thread runs the bursts of all requests, others prepare prompts and decode audio.

Nothing here waits in the event loop. A request that is left, by an error, a timeout or a listener who goes away, gives
its row back before the next burst.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from higgs.config import SamplingConfig
from higgs.data.chatml import ChatMLSample
from higgs.serve.batching.scheduler import Busy, Ticket
from higgs.serve.engine import Engine
from higgs.serve.stream import AudioStream, Chunk

T = TypeVar("T")
MOST_FAILURES = 3  # bursts in a row, after which the engine is given up

logger = logging.getLogger(__name__)


class Broken(RuntimeError):
    """The engine failed again and again, and takes no more requests."""


class AsyncEngine:
    """`async for chunk in AsyncEngine(engine).stream(sample, sampling)`: as `Engine.stream`, many at once.

    Of one event loop, that in which `stream` is called. `close` ends what runs.
    """

    def __init__(self, engine: Engine, workers: int = 2):
        self.engine, self.scheduler = engine, engine.scheduler
        self.open = 0  # requests, from their first moment to their last
        self.error: Exception | None = None  # what the engine broke of
        self._failures = 0
        self._listeners: dict[Ticket, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}
        self._lock = threading.Lock()
        self._work, self._closing = threading.Event(), False
        self._pool = ThreadPoolExecutor(workers, "higgs-audio")
        self._thread = threading.Thread(target=self._run, name="higgs-bursts", daemon=True)
        self._thread.start()

    @property
    def most(self) -> int:
        """How many requests may be open."""
        return self.engine.config.max_batch + self.engine.config.max_waiting

    @property
    def healthy(self) -> bool:
        return self.error is None and self._thread.is_alive()

    def close(self) -> None:
        """Ends the threads; requests that are still open get an error."""
        self._closing = True
        self._work.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    async def stream(
        self,
        sample: ChatMLSample,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int = 1024,
        seconds: float | None = None,
    ) -> AsyncIterator[Chunk]:
        """Pieces of the answer, as soon as they are certain; the last has a `stop_reason`.

        Raises Busy at once when `most` requests are open, ValueError as `Engine.stream`, TimeoutError when `seconds`
        have passed, RuntimeError when the engine fails.
        """
        if not self.healthy or self._closing:
            raise Broken(f"the engine has stopped: {self.error or 'it is being closed'}")
        if self.open >= self.most:
            raise Busy(f"{self.open} requests are open; this server takes {self.most}")
        until = None if seconds is None else time.monotonic() + seconds
        self.open += 1
        ticket = None
        try:
            request = await self._do(until, self.engine.request, sample, sampling, max_new_tokens)
            ticket = self.scheduler.submit(request)
            audio, news = AudioStream(self.engine.tokenizer), self._listen(ticket)
            done = False
            while not done:
                await self._by(until, news.wait())
                news.clear()
                done = ticket.done  # before `take`, which then yields all there is
                for chunk in await self._do(until, lambda: list(audio.push(ticket.take()))):
                    yield chunk
            yield await self._do(until, audio.finish, ticket.finished, ticket.stop_reason)
        finally:
            self.open -= 1
            if ticket is not None:
                self.scheduler.cancel(ticket)
                with self._lock:
                    self._listeners.pop(ticket, None)

    async def _do(self, until: float | None, work: Callable[..., T], *arguments: Any) -> T:
        """In a thread of the pool."""
        loop = asyncio.get_running_loop()
        return await self._by(until, loop.run_in_executor(self._pool, work, *arguments))

    @staticmethod
    async def _by(until: float | None, awaited: Any) -> Any:
        left = None if until is None else until - time.monotonic()
        return await asyncio.wait_for(awaited, left)

    def _listen(self, ticket: Ticket) -> asyncio.Event:
        """-> what is set when there is something to take, or the end."""
        news = asyncio.Event()
        with self._lock:
            self._listeners[ticket] = (asyncio.get_running_loop(), news)
        self._tell()  # the burst may have come first
        self._work.set()
        return news

    def _tell(self) -> None:
        with self._lock:
            waiting = list(self._listeners.items())
        for ticket, (loop, news) in waiting:
            if (ticket.done or ticket.fresh) and not loop.is_closed():
                loop.call_soon_threadsafe(news.set)

    def _run(self) -> None:
        while not self._closing:
            self._work.wait()
            self._work.clear()
            while not self._closing and self.error is None and not self.scheduler.idle:
                self._burst()
                self._tell()
        self._fail(Broken("the engine was closed"))

    def _burst(self) -> None:
        try:
            self.scheduler.burst()
            self._failures = 0
        except Exception as error:  # the requests that ran have got it as theirs
            self._failures += 1
            logger.exception("a burst failed (%d in a row)", self._failures)
            if self._failures >= MOST_FAILURES:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Whatever is open ends with this error, and nothing new is taken."""
        self.error = error
        with self._lock:
            tickets = list(self._listeners)
        for ticket in tickets:
            if not ticket.done:
                ticket.error, ticket.stop_reason = error, "error"
        self._tell()
