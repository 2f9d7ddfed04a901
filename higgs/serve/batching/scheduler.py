"""Continuous batching: sequences wait, are prefilled into free slots, and keep them until they end.

All device work runs inside `run_steps`, one call at a time. `submit` only enqueues; it and `cancel` may be called from
any thread. So one class serves a caller that waits for its own sequence and a server that waits for many.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.serve.batching.slots import SlotDecoder
from higgs.serve.batching.state import ENDED, IDLE
from higgs.serve.runaway import TEXT_LENGTH, RunawayDetector

STOP, LENGTH, CANCELLED, ERROR = "stop", "length", "cancelled", "error"


class QueueFull(RuntimeError):
    """Too many requests wait already."""


@dataclass(eq=False)
class Sequence:
    """A request in the scheduler: a prompt of B = 1 on the CPU, and the delayed frames generated so far.

    `limit` counts steps, stream bos included; `max_frames` is as many as the text may take, which can be fewer.
    `make_detector` makes the run-away detector of each attempt. `finished` says whether the segment ended by itself.
    """

    prompt: Batch
    sampling: SamplingConfig
    limit: int
    max_frames: int | None = None
    make_detector: Callable[[], RunawayDetector] | None = None
    slot: int | None = field(default=None, init=False)
    frames: list[Tensor] = field(default_factory=list, init=False)  # [K, C] each
    num_steps: int = field(default=0, init=False)
    num_read: int = field(default=0, init=False)  # entries of `frames`
    finished: bool = field(default=False, init=False)
    stop_reason: str | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    cancelled: bool = field(default=False, init=False)
    detector: RunawayDetector | None = field(default=None, init=False)

    @property
    def length(self) -> int:
        """Positions of the prompt."""
        return self.prompt.input_ids.shape[1]

    @property
    def num_codebooks(self) -> int:
        return self.prompt.codes.shape[-1]

    @property
    def max_steps(self) -> int:
        """`limit`, or as many steps as the text's frames, their delay, bos and eos take."""
        if self.max_frames is None:
            return self.limit
        return min(self.limit, self.max_frames + self.num_codebooks + 1)

    @property
    def done(self) -> bool:
        return self.stop_reason is not None

    @property
    def has_new(self) -> bool:
        return self.done or self.num_read < len(self.frames)

    @property
    def steps_read(self) -> int:
        return sum(frames.shape[1] for frames in self.frames[: self.num_read])

    @property
    def delayed(self) -> Tensor:
        """[K, C]: all frames."""
        return torch.cat(self.frames, dim=1)

    def read_new(self) -> Tensor:
        """-> [K, C] int64, the frames since the last call. Raises the error that ended the request, if one did."""
        if self.error is not None:
            raise self.error
        new = self.frames[self.num_read :]
        self.num_read += len(new)
        return torch.cat(new, dim=1) if new else torch.zeros(self.num_codebooks, 0, dtype=torch.long)

    def append(self, frames: Tensor) -> None:
        self.frames.append(frames)
        self.num_steps += frames.shape[1]

    def next_attempt(self) -> "Sequence":
        """The same request with the next seed."""
        return replace(self, sampling=replace(self.sampling, seed=self.sampling.seed + 1))


class Scheduler:
    """`submit` sequences, then call `run_steps` until they are done."""

    def __init__(self, decoder: SlotDecoder, max_waiting: int):
        self.decoder, self.max_waiting = decoder, max_waiting
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}
        self.stops: dict[str, int] = {}  # how many sequences ended for which reason
        self._lock, self._in_step = threading.RLock(), False

    def submit(self, sequence: Sequence) -> Sequence:
        """Enqueues. Raises ValueError where no slot can hold it and for parity, QueueFull when too many wait."""
        if sequence.sampling.parity:
            raise ValueError("parity=True is for `generate` and `generate_batch`")
        self.decoder.check_capacity(sequence.length, sequence.max_steps)
        waiting = sum(not s.cancelled for s in (*self.running.values(), *self.waiting)) - self.decoder.slots
        if waiting >= self.max_waiting:
            raise QueueFull(f"{waiting} requests wait already; the engine takes {self.max_waiting}")
        bos = self.decoder.model.config.stream_bos
        sequence.append(torch.full((sequence.num_codebooks, 1), bos))
        sequence.detector = sequence.make_detector() if sequence.make_detector else None
        self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence: now, or, while steps run, after them. Does nothing when it has ended."""
        sequence.cancelled = True
        # Steps of this thread, too: a stream that is collected as garbage is closed in the middle of anything.
        if not self._in_step and self._lock.acquire(blocking=False):
            try:
                self._drop_cancelled()
            finally:
                self._lock.release()

    def reject_waiting(self, error: Exception) -> None:
        """Ends all sequences that have no slot yet, with this error."""
        with self._lock:
            while self.waiting:
                self._end(self.waiting.popleft(), ERROR, error)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def wait(self, sequence: Sequence) -> None:
        """Runs steps until the sequence has something new, or has ended."""
        while not sequence.has_new:
            with self._lock:
                if not sequence.has_new:
                    self.run_steps()

    def run_steps(self) -> None:
        """Prefills waiting sequences into free slots, then runs up to `steps_per_sync` steps."""
        with self._lock:
            self._drop_cancelled()
            self._in_step = True
            try:
                self._prefill()
                if self.running:
                    self._decode()
            finally:
                self._in_step = False

    def _end(self, sequence: Sequence, reason: str, error: Exception | None = None) -> None:
        if sequence.slot is not None:
            del self.running[sequence.slot]
            self.decoder.free(sequence.slot)
            sequence.slot = None
        sequence.error, sequence.stop_reason = error, reason
        self.stops[reason] = self.stops.get(reason, 0) + 1

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in (*self.running.values(), *self.waiting) if s.cancelled]:
            if sequence.slot is None:
                self.waiting.remove(sequence)
            self._end(sequence, CANCELLED)

    def _prefill(self) -> None:
        """The longest waiting into the lowest free slots."""
        while self.waiting and len(self.running) < self.decoder.slots:
            sequence = self.waiting.popleft()
            slot = next(s for s in range(self.decoder.slots) if s not in self.running)
            sequence.slot, self.running[slot] = slot, sequence
            try:
                self.decoder.prefill(slot, sequence.prompt, sequence.max_steps, sequence.sampling)
            except torch.OutOfMemoryError as error:
                self._out_of_memory([sequence], error)
            except BaseException as error:
                self._end(sequence, ERROR, _passed_on(error))
                raise
            else:
                if sequence.limit == 1:
                    self._end(sequence, LENGTH)

    def _decode(self) -> None:
        sequences = list(self.running.values())
        left = max(sequence.max_steps - sequence.num_steps for sequence in sequences)
        try:
            outputs = self.decoder.run(min(self.decoder.steps_per_sync, left))
        except torch.OutOfMemoryError as error:
            self._out_of_memory(sequences, error)
        except BaseException as error:
            for sequence in sequences:
                self._end(sequence, ERROR, _passed_on(error))
            raise
        else:
            for sequence in sequences:
                self._append(sequence, outputs[sequence.slot])

    def _append(self, sequence: Sequence, outputs: Tensor) -> None:
        """What the last steps drew for one sequence [steps, K + 1]."""
        kinds = outputs[:, -1]
        frames = outputs[kinds != IDLE, :-1].T.clone()
        sequence.append(frames)
        if (kinds == ENDED).any():
            sequence.finished = True
            self._end(sequence, STOP)
        elif sequence.num_steps >= sequence.max_steps:
            self._end(sequence, LENGTH if sequence.max_steps == sequence.limit else TEXT_LENGTH)
        elif sequence.detector and (reason := sequence.detector.observe(frames[0])):
            self._end(sequence, reason)

    def _out_of_memory(self, sequences: list[Sequence], error: Exception) -> None:
        """These fail, each with its own error; the memory is given back, and the others go on."""
        for sequence in sequences:
            prompt, others = f"a prompt of {sequence.length} positions", f"{len(self.running) - 1} other requests"
            advice = "ask for less at a time, or set max_batch or max_positions lower"
            where = self.decoder.model.device
            failure = RuntimeError(f"out of memory on {where} with {prompt} beside {others}: {advice}")
            failure.__cause__ = error
            self._end(sequence, ERROR, failure)
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()


def _passed_on(error: BaseException) -> Exception:
    """What ended the steps of one thread, for the requests of others: Ctrl-C is the first one's alone."""
    return error if isinstance(error, Exception) else RuntimeError("the steps of this request were interrupted")
