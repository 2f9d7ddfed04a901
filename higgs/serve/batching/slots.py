"""The device's side of serving: rows of a batch that take prompts in and give columns of codes out."""

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.kv_cache import KVCache
from higgs.serve.batching.cuda_graph import GraphedStep
from higgs.serve.batching.fused_weights import FusedWeights, can_pack, fuse, pack
from higgs.serve.batching.prefix_cache import VoiceCache, fingerprint
from higgs.serve.batching.state import NARROW, DecodeState
from higgs.serve.batching.step import decode_step

SPAN = 256  # where shapes are fixed, attention reads a multiple of so many positions


# Without Python around the kernels, and without a look at arguments that are always the same objects.
CPU_OPTIONS = {
    "cpp_wrapper": True,
    "size_asserts": False,
    "guard_filter_fn": lambda guards: [False] * len(guards),
}


def compiled_copy(step: Callable[..., None], device: torch.device) -> Callable[..., None]:
    """The step through torch.compile, which keeps what it makes by code object: so each copy has one of its own."""
    copy = FunctionType(step.__code__.replace(), step.__globals__, step.__name__)
    options = CPU_OPTIONS if device.type == "cpu" else None
    return torch.compile(copy, fullgraph=True, dynamic=False, options=options)


def cut(prompt: Batch, start: int, stop: int) -> Batch:
    """Some positions of a prompt."""
    parts = {k: v if v is None else v[:, start:stop] for k, v in vars(prompt).items()}
    return Batch(**parts)


def prefix_length(prompt: Batch) -> int:
    """How many positions of a prompt of B = 1 belong to its voices: all up to the end of the last audio."""
    spoken = prompt.audio_mask[0].nonzero()
    return int(spoken[-1]) + 1 if len(spoken) else 0


def check_int8(dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        raise ValueError(f"int8 weights go with dtype bfloat16, and the model is in {dtype}")


class Decoder:
    """`rows` requests at once, each at most `positions` long; `burst` steps between two looks of the host.

    Eager on the CPU, a row is computed as if it were alone: its numbers agree to the last bits of float32, which some
    CPUs round by the shape of a product, so that draws agree. Compiled, or recorded as CUDA graphs, shapes are fixed:
    rows go in powers of two, and attention reads what the longest row needs, rounded up.
    """

    def __init__(
        self,
        model: HiggsAudio,
        rows: int,
        positions: int,
        burst: int,
        compiled: bool = False,
        prefixes: VoiceCache | None = None,
        int8: bool = False,
    ):
        config, device = model.config, model.device
        self.model, self.rows, self.positions, self.burst = model, rows, positions, burst
        self.prefixes = VoiceCache(0) if prefixes is None else prefixes
        self.cache = KVCache(config, rows, positions, device, model.dtype)
        self.state = DecodeState.create(config, rows, positions, burst, device)
        self.weights = fuse(model, positions)
        packs = not compiled and can_pack(device, model.dtype)
        if int8:
            check_int8(model.dtype)
            head = pack(self.weights.head) if packs else self.weights.head
            self.weights = self.weights.quantized()._replace(head=head)
        elif packs:
            self.weights = self.weights.packed()
        self.compiled, self.exact = compiled, device.type == "cpu" and not compiled
        self.graphed = GraphedStep() if GraphedStep.runs_on(device) else None
        self.records = torch.empty_like(self.state.records, device="cpu", pin_memory=device.type != "cpu")
        self.filled = [0] * rows  # where each row's newest column goes
        self.occupied = [False] * rows
        self.wide = [False] * rows
        self._views: dict[int, tuple[FusedWeights, list[Tensor], DecodeState]] = {}
        self._programs: dict[tuple[int, int, bool], Callable[..., None]] = {}

    def check_room(self, length: int, limit: int) -> None:
        """Raises ValueError when no row can hold a prompt of that length and so many columns."""
        if length + limit > self.positions:
            raise ValueError(
                f"a prompt of {length} positions and {limit} new tokens need {length + limit}, but the engine was set "
                f"up for {self.positions}: ask for fewer, speak it in chunks, or raise max_positions"
            )

    @torch.inference_mode()
    def admit(self, row: int, prompt: Batch, limit: int, sampling: SamplingConfig) -> None:
        """Reads a prompt of B = 1 into a row, which then makes up to `limit` columns, stream bos included."""
        length = prompt.input_ids.shape[1]
        self.check_room(length, limit)
        self.occupied[row], self.filled[row] = True, length
        keep = sampling.top_k or self.model.config.code_vocab_size
        self.wide[row] = sampling.temperature != 0 and keep > NARROW
        self._prefill(row, prompt)
        heard = prompt.codes[prompt.audio_out_mask].T.to(self.state.codes.device)
        self.state.admit(row, length, limit, sampling, heard, self.model.config)

    @torch.inference_mode()
    def release(self, row: int) -> None:
        self.state.release(row)
        self.occupied[row], self.filled[row], self.wide[row] = False, 0, False

    def _prefill(self, row: int, prompt: Batch) -> None:
        """The voices' part goes by itself, whether it is kept or new, so that the numbers are the same."""
        cache = self.cache.slot(row)
        length, prefix = prompt.input_ids.shape[1], prefix_length(prompt)

        def read(start: int, stop: int) -> None:
            self.model.prefill(cut(prompt, start, stop).to(self.model.device), cache)

        if prefix:

            def compute() -> list[Tensor]:
                read(0, prefix)
                return [kept[..., :prefix, :].clone() for kept in cache.layers]

            key = fingerprint(prompt.input_ids[:, :prefix], prompt.codes[:, :prefix])
            for kept, saved in zip(cache.layers, self.prefixes.get(key, compute), strict=True):
                kept[..., :prefix, :] = saved
            cache.length = prefix
        read(prefix, length)

    @torch.inference_mode()
    def run(self, steps: int) -> Tensor:
        """At most `burst` steps for the occupied rows -> what they drew, [rows, steps, K + 1], on the CPU.

        See `DecodeState.records`. The host waits for the device here, once.
        """
        rows = 1 + max(row for row, taken in enumerate(self.occupied) if taken)
        if not self.exact:
            rows = min(1 << (rows - 1).bit_length(), self.rows)
        weights, cache, state = self._view(rows)
        wide = any(self.wide)
        self.state.tick.zero_()
        for step in range(steps):
            needed = [min(filled + step + 1, self.positions) for filled in self.filled[:rows]]
            if self.exact:
                decode_step(weights, cache, state, needed, wide)
                continue
            span = self._span(max(needed))
            key, arguments = (rows, span, wide), (weights, cache, state, span, wide)
            if self.graphed is None:
                self._program(key)(*arguments)
            else:
                self.graphed(key, state.changed(), self._program(key), *arguments)
        self.filled = [filled + steps * taken for filled, taken in zip(self.filled, self.occupied, strict=True)]
        self.records.copy_(self.state.records, non_blocking=True)
        if self.model.device.type != "cpu":
            torch.accelerator.current_stream(self.model.device).synchronize()
        return self.records[:, :steps]

    def _span(self, needed: int) -> int:
        """How many positions attention reads: few different numbers where each one has to be compiled."""
        if self.compiled:
            return min(max(2 * SPAN, 1 << (needed - 1).bit_length()), self.positions)
        return min(-(-needed // SPAN) * SPAN, self.positions)

    def _program(self, key: tuple[int, int, bool]) -> Callable[..., None]:
        """The step for one set of shapes."""
        if key not in self._programs:
            made = compiled_copy(decode_step, self.model.device) if self.compiled else decode_step
            self._programs[key] = made
        return self._programs[key]

    def _view(self, rows: int) -> tuple[FusedWeights, list[Tensor], DecodeState]:
        """The first rows of everything, always the same objects."""
        if rows not in self._views:
            alone = self.model.dtype == torch.float32 and not self.compiled
            weights = self.weights.sheets(rows) if alone else self.weights
            cache = [kept[:, :rows] for kept in self.cache.layers]
            self._views[rows] = weights, cache, self.state.first(rows)
        return self._views[rows]
