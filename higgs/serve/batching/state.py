"""What each row of a batch carries from one decode step to the next: tensors that stay at their addresses.

A row is a slot: a request keeps the same one from its prompt to its last column. A step reads and writes all of this
on the device; the host writes when a request comes (`admit`) and reads the `records` of several steps at once.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from higgs.config import MAX_RAS_WINDOW, ModelConfig, SamplingConfig
from higgs.serve.counter_rng import column_keys

RING = MAX_RAS_WINDOW
NARROW = 64  # candidates that are looked at when no row asks for more
IDLE, RUNNING, ENDED = 0, 1, 2  # what a record says of its column


@dataclass
class DecodeState:
    """B rows. Settings stand as tensors, so that rows with different ones go through the same operations."""

    codes: Tensor  # [B, K] int64: the newest column, which the model has not read yet
    column: Tensor  # [B] int64: the number of the next column in its segment; 0 is the one of stream bos
    position: Tensor  # [B] int64: where the keys and values of the newest column go
    limit: Tensor  # [B] int64: how many columns the segment may have
    live: Tensor  # [B] bool: whether there is a next column
    ended: Tensor  # [B, 1] int64: how many codebooks, from the first, have ended
    heard: Tensor  # [B, RING, K] int64: the last columns, column n at place n mod ras_window; -1 is none
    keys: Tensor  # [B, capacity, 2 K, 2] int64: of the draws of each column, and of drawing it again
    temperature: Tensor  # [B, 1, 1]
    top_k: Tensor  # [B, K, 1] int64: rank of the last candidate that is kept
    top_p: Tensor  # [B, 1, 1]
    wide: Tensor  # [B, 1] bool: whether more than NARROW candidates are looked at
    ras_window: Tensor  # [B] int64
    ras_repeats: Tensor  # [B, 1] int64
    barred: Tensor  # [B, K, 2]: 0, or -inf for stream bos and eos that may not be drawn
    ordinal: Tensor  # [B, K] int64: 1 ... K; with strict_eos 0 ... K - 1
    records: Tensor  # [B, steps, K + 1] int64: what was drawn in each step, and IDLE, RUNNING or ENDED
    tick: Tensor  # [1] int64: steps since the host read the records
    rows: Tensor  # [B] int64: 0 ... B - 1

    @classmethod
    def create(cls, config: ModelConfig, rows: int, capacity: int, steps: int, device: torch.device) -> "DecodeState":
        """All rows idle."""
        K = config.num_codebooks

        def whole(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, device=device, dtype=torch.int64)

        def real(*shape: int, fill: float = 0.0) -> Tensor:
            return torch.full(shape, fill, device=device, dtype=torch.float32)

        return cls(
            codes=whole(rows, K),
            column=whole(rows),
            position=whole(rows),
            limit=whole(rows),
            live=whole(rows).bool(),
            ended=whole(rows, 1),
            heard=whole(rows, RING, K),
            keys=whole(rows, capacity, 2 * K, 2),
            temperature=real(rows, 1, 1, fill=1.0),
            top_k=whole(rows, K, 1),
            top_p=real(rows, 1, 1, fill=1.0),
            wide=whole(rows, 1).bool(),
            ras_window=whole(rows, fill=1),
            ras_repeats=whole(rows, 1, fill=RING + 1),
            barred=real(rows, K, 2),
            ordinal=whole(rows, K) + torch.arange(1, K + 1, device=device),
            records=whole(rows, steps, K + 1),
            tick=whole(1),
            rows=torch.arange(rows, device=device),
        )

    def first(self, rows: int) -> "DecodeState":
        """The first rows, over the same memory."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return DecodeState(**{k: v if k == "tick" else v[:rows] for k, v in named.items()})

    def changed(self) -> list[Tensor]:
        """What a step writes."""
        names = ("codes", "column", "position", "live", "ended", "heard", "records", "tick")
        return [getattr(self, name) for name in names]

    def admit(
        self,
        row: int,
        position: int,
        limit: int,
        sampling: SamplingConfig,
        heard: Tensor,
        config: ModelConfig,
    ) -> None:
        """A request takes a row. Its prompt fills `position` places, and a column of stream bos follows.

        `limit` counts columns with that one; `heard` [K, C] is the assistant's audio in the prompt.
        """
        K, device = config.num_codebooks, self.codes.device
        self.codes[row] = config.stream_bos
        self.column[row], self.position[row], self.limit[row] = 1, position, limit
        self.live[row], self.ended[row] = limit > 1, 0
        # The plain loop counts the steps of a request from 1, and opens the segment in the first.
        steps = torch.arange(1, limit + 1, device=device)
        self.keys[row, :limit] = column_keys(sampling.seed, steps, K)
        self._set_filters(row, sampling, config.code_vocab_size)
        self._set_repeats(row, sampling, heard, config.stream_bos)
        self.barred[row] = 0
        self.ordinal[row] = torch.arange(1, K + 1, device=device)
        if sampling.strict_eos:
            self.barred[row, :, 0] = self.barred[row, 1:, 1] = -torch.inf
            self.ordinal[row] -= 1

    def release(self, row: int) -> None:
        """The row is idle: it goes along at the lowest cost until it is taken again."""
        self.live[row], self.wide[row] = False, False
        self.column[row] = self.position[row] = self.top_k[row] = 0

    def _set_filters(self, row: int, sampling: SamplingConfig, size: int) -> None:
        greedy = sampling.temperature == 0
        keep = 1 if greedy else min(sampling.top_k or size, size)
        self.temperature[row] = 1.0 if greedy else sampling.temperature
        self.top_k[row] = keep - 1
        self.top_p[row] = sampling.top_p
        self.wide[row] = keep > NARROW

    def _set_repeats(self, row: int, sampling: SamplingConfig, heard: Tensor, bos: int) -> None:
        """Fills the ring: column 0 of stream bos, and before it what was heard."""
        window = sampling.ras_window or 1
        self.ras_window[row] = window
        self.ras_repeats[row] = RING + 1 if sampling.ras_window is None else sampling.ras_max_repeats
        self.heard[row] = -1
        self.heard[row, 0] = bos
        before = min(window - 1, 0 if sampling.strict_eos else heard.shape[1])
        if before:
            self.heard[row, window - before : window] = heard[:, -before:].T
