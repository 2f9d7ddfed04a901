"""Who is in which row: requests wait, take a free row between two bursts of steps, and keep it until they end.

Everything happens in `burst`, one call after another; `submit` and `cancel` only leave a note and may be called from
any thread. So the same class serves a loop that waits for its own request and a server that waits for many.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.serve.batching.slots import Decoder
from higgs.serve.batching.state import ENDED, IDLE
from higgs.serve.guards import TEXT_LENGTH, Watch

STOP, LENGTH, CANCELLED, ERROR = "stop", "length", "cancelled", "error"


class QueueFull(RuntimeError):
    """Too many requests wait already."""


@dataclass(eq=False)
class Request:
    """A prompt of B = 1 on the CPU, and at most `limit` columns, stream bos included.

    `most_frames` is the text's guard: so many frames are enough for what there is to say. `watch` makes the eyes of
    the other guards, new for each ticket.
    """

    prompt: Batch
    sampling: SamplingConfig
    limit: int
    most_frames: int | None = None
    watch: Callable[[], Watch] | None = None


class Ticket:
    """A request on its way. `take` yields what is new; `done` when there will be no more."""

    def __init__(self, request: Request, first: Tensor):
        self.request = request
        self.watch = request.watch() if request.watch else None
        self.row: int | None = None
        self.made = 1  # columns, stream bos included
        self.finished = False  # whether the segment ended by itself
        self.stop_reason: str | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.fresh = deque([first])

    @property
    def done(self) -> bool:
        return self.stop_reason is not None

    def take(self) -> Tensor:
        """-> [K, C] int64, the columns since the last call. Raises the error that ended the request, if one did."""
        if self.error is not None:
            raise self.error
        fresh = [self.fresh.popleft() for _ in range(len(self.fresh))]
        size = self.request.prompt.codes.shape[-1]
        return torch.cat(fresh, dim=1) if fresh else torch.zeros(size, 0, dtype=torch.long)

    def _add(self, columns: Tensor) -> None:
        self.fresh.append(columns)
        self.made += columns.shape[1]


class Scheduler:
    """`submit` requests, then call `burst` until their tickets are done."""

    def __init__(self, decoder: Decoder, max_waiting: int):
        self.decoder, self.max_waiting = decoder, max_waiting
        self.waiting: deque[Ticket] = deque()
        self.running: dict[int, Ticket] = {}
        self.stops: dict[str, int] = {}  # how many requests ended for which reason
        self._lock = threading.Lock()

    def submit(self, request: Request) -> Ticket:
        """Raises ValueError for a request that no row can hold, and QueueFull when too many wait."""
        self.decoder.check_room(request.prompt.input_ids.shape[1], request.limit)
        waiting = len(self.waiting) + len(self.running) - self.decoder.rows
        if waiting >= self.max_waiting:
            raise QueueFull(f"{waiting} requests wait already; the engine takes {self.max_waiting}")
        bos = self.decoder.model.config.stream_bos
        ticket = Ticket(request, torch.full((request.prompt.codes.shape[-1], 1), bos))
        self.waiting.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """The request ends: now, or, while a burst runs, before the next one. After its end nothing happens."""
        ticket.cancelled = True
        if self._lock.acquire(blocking=False):
            try:
                self._drop_cancelled()
            finally:
                self._lock.release()

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def wait(self, ticket: Ticket) -> None:
        """Bursts until there is something to take from this one, or its end."""
        while not ticket.done and not ticket.fresh:
            with self._lock:
                if not ticket.done and not ticket.fresh:
                    self._burst()

    def burst(self) -> list[Ticket]:
        """Lets requests in, runs some steps for all that have a row -> the tickets that changed."""
        with self._lock:
            return self._burst()

    def _burst(self) -> list[Ticket]:
        changed = self._drop_cancelled() + self._admit()
        if self.running:
            changed += self._run()
        return changed

    def _end(self, ticket: Ticket, reason: str, error: Exception | None = None) -> None:
        if ticket.row is not None:
            del self.running[ticket.row]
            self.decoder.release(ticket.row)
            ticket.row = None
        ticket.error, ticket.stop_reason = error, reason
        self.stops[reason] = self.stops.get(reason, 0) + 1

    def _drop_cancelled(self) -> list[Ticket]:
        dropped = [t for t in (*self.running.values(), *self.waiting) if t.cancelled]
        for ticket in dropped:
            if ticket.row is None:
                self.waiting.remove(ticket)
            self._end(ticket, CANCELLED)
        return dropped

    def _limit(self, request: Request) -> int:
        """Columns: what was asked for, or as many as the text's frames, their delay, bos and eos take."""
        if request.most_frames is None:
            return request.limit
        delay = self.decoder.model.config.num_codebooks + 1
        return min(request.limit, request.most_frames + delay)

    def _admit(self) -> list[Ticket]:
        """The longest waiting into the lowest free rows -> those that ended at once."""
        ended = []
        while self.waiting and len(self.running) < self.decoder.rows:
            ticket = self.waiting.popleft()
            row = next(r for r in range(self.decoder.rows) if r not in self.running)
            ticket.row, self.running[row] = row, ticket
            request = ticket.request
            try:
                self.decoder.admit(row, request.prompt, self._limit(request), request.sampling)
            except torch.OutOfMemoryError as error:
                self._out_of_memory([ticket], error)
                ended.append(ticket)
                continue
            except Exception as error:
                self._end(ticket, ERROR, error)
                raise
            if request.limit == 1:
                self._end(ticket, LENGTH)
                ended.append(ticket)
        return ended

    def _run(self) -> list[Ticket]:
        left = (self._limit(t.request) - t.made for t in self.running.values())
        try:
            records = self.decoder.run(min(self.decoder.burst, max(left)))
        except Exception as error:
            tickets = list(self.running.values())
            if not isinstance(error, torch.OutOfMemoryError):
                for ticket in tickets:
                    self._end(ticket, ERROR, error)
                raise
            self._out_of_memory(tickets, error)
            return tickets
        changed = list(self.running.items())
        for row, ticket in changed:
            self._read(ticket, records[row])
        return [ticket for _, ticket in changed]

    def _read(self, ticket: Ticket, records: Tensor) -> None:
        """What a burst drew for one request [steps, K + 1]."""
        kinds = records[:, -1]
        columns = records[kinds != IDLE, :-1].T.clone()
        ticket._add(columns)
        request, limit = ticket.request, self._limit(ticket.request)
        if (kinds == ENDED).any():
            ticket.finished = True
            self._end(ticket, STOP)
        elif ticket.made >= limit:
            self._end(ticket, LENGTH if limit == request.limit else TEXT_LENGTH)
        elif ticket.watch and (reason := ticket.watch.observe(columns[0])):
            self._end(ticket, reason)

    def _out_of_memory(self, tickets: list[Ticket], error: Exception) -> None:
        """These requests fail, each with its own error; the memory is given back, and the others go on."""
        for ticket in tickets:
            length = ticket.request.prompt.input_ids.shape[1]
            told = RuntimeError(
                f"out of memory on {self.decoder.model.device} with a prompt of {length} positions beside "
                f"{len(self.running) - 1} other requests: ask for less at a time, or set max_batch or max_positions "
                "lower"
            )
            told.__cause__ = error
            self._end(ticket, ERROR, told)
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
