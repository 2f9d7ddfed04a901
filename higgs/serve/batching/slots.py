"""Batched decoding: prefill a prompt into a slot, run decode steps for all occupied slots."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from types import FunctionType

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.kv_cache import KVCache
from higgs.serve.batching.fused_weights import FusedWeights, fuse
from higgs.serve.batching.prefix_cache import PrefixCache, fingerprint
from higgs.serve.batching.state import SMALL_TOP_K, DecodeState
from higgs.serve.batching.step import decode_step

# In 16 bits on the CPU, attention adds what is left over of so many positions in another order: a prefix is padded, so
# that its bits are those of a prompt that is read at once (of up to 192 positions; beyond, few differ).
IN_ORDER = 16
KV_BUCKET = 256  # where shapes are fixed, attention reads a multiple of so many positions

# Without Python around the kernels, and without checks of arguments that are always the same objects.
CPU_OPTIONS = {"cpp_wrapper": True, "size_asserts": False, "guard_filter_fn": lambda guards: [False] * len(guards)}


def compiled_copy(step: Callable[..., None], device: torch.device) -> Callable[..., None]:
    """The step through torch.compile, whose cache is keyed by code object: so each copy has one of its own."""
    copy = FunctionType(step.__code__.replace(), step.__globals__, step.__name__)
    options = CPU_OPTIONS if device.type == "cpu" else None
    return torch.compile(copy, fullgraph=True, dynamic=False, options=options)


class GraphedStep:
    """A decode step as a CUDA graph, sampling included: one launch from the host instead of hundreds.

    Captured once for each key and replayed from then on: the tensors passed for one key must stay at their addresses.
    All graphs share one memory pool, since they never run at the same time.
    """

    def __init__(self) -> None:
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, key: Hashable, changed: Sequence[Tensor], step: Callable[..., None], *arguments) -> None:
        """`changed` are the tensors that a step writes: they are restored after each step of the warm-up."""
        if key not in self.graphs:
            self.graphs[key] = self._capture(changed, partial(step, *arguments))
        self.graphs[key].replay()

    def _capture(self, changed: Sequence[Tensor], step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        # What compiles, tunes or allocates on its first run must do so outside of the graph.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            warm_up(changed, step)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which encode references and decode audio, may allocate meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            step()
        return graph


def warm_up(changed: Sequence[Tensor], step: Callable[[], None]) -> None:
    """Two steps that leave nothing: a second one from the state of the first might write behind the last output."""
    before = [tensor.clone() for tensor in changed]
    for _ in range(2):
        step()
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)


class SlotDecoder:
    """`slots` requests at once, each of at most `positions`; `steps_per_sync` decode steps between two host syncs.

    Eager on the CPU, a slot is computed independently of the others: by one call (`NativeLayers`) bit for bit, by
    operators to the last bits of float32, which some CPUs round by the shape of a product, so that draws agree.
    Compiled, or captured as CUDA graphs, shapes are fixed: the batch size is a power of two, and attention reads what
    the longest slot needs, rounded up.
    """

    def __init__(
        self,
        model: HiggsAudio,
        slots: int,
        positions: int,
        steps_per_sync: int,
        compiled: bool = False,
        prefixes: PrefixCache | None = None,
    ):
        config, device = model.config, model.device
        self.model, self.slots, self.positions, self.steps_per_sync = model, slots, positions, steps_per_sync
        self.prefixes = PrefixCache(0) if prefixes is None else prefixes
        self.cache = KVCache(config, slots, positions, device, model.dtype)
        self.state = DecodeState.create(config, slots, positions, steps_per_sync, device)
        self.weights = fuse(model, positions, compiled)
        self.compiled, self.exact = compiled, device.type == "cpu" and not compiled
        self.graphed = GraphedStep() if device.type == "cuda" else None
        self.outputs = torch.empty_like(self.state.outputs, device="cpu", pin_memory=device.type != "cpu")
        self.next_position = [0] * slots  # 0: free
        self.full_vocab = [False] * slots
        self._views: dict[int, tuple[FusedWeights, list[Tensor], DecodeState]] = {}
        self._programs: dict[tuple[int, int, bool], Callable[..., None]] = {}

    def check_capacity(self, length: int, limit: int) -> None:
        """Raises ValueError when no slot can hold a prompt of that length and so many steps."""
        if length + limit > self.positions:
            need = f"a prompt of {length} positions and {limit} new tokens need {length + limit}"
            advice = "ask for fewer, speak it in chunks, or raise max_positions"
            raise ValueError(f"{need}, but the engine was set up for {self.positions}: {advice}")

    @torch.inference_mode()
    def prefill(self, slot: int, prompt: Batch, limit: int, sampling: SamplingConfig) -> None:
        """Prefills a prompt of B = 1 into a slot, which then decodes up to `limit` steps, stream bos included."""
        length = prompt.input_ids.shape[1]
        self.check_capacity(length, limit)
        self.next_position[slot] = length
        top_k = sampling.top_k or self.model.config.code_vocab_size
        self.full_vocab[slot] = not sampling.greedy and top_k > SMALL_TOP_K
        self._read_prompt(slot, prompt)
        history = prompt.codes[prompt.audio_out_mask].T.to(self.state.codes.device)
        self.state.start(slot, length, limit, sampling, history, self.model.config)

    @torch.inference_mode()
    def free(self, slot: int) -> None:
        self.state.free(slot)
        self.next_position[slot], self.full_vocab[slot] = 0, False

    def _read_prompt(self, slot: int, prompt: Batch) -> None:
        """The voices' prefix, up to the last audio, is a forward pass of its own, cached or new, with equal numbers."""
        cache, audio = self.cache.slot(slot), prompt.audio_mask[0].nonzero()
        length, prefix = prompt.input_ids.shape[1], int(audio[-1]) + 1 if len(audio) else 0

        def read(start: int, stop: int, padding: int = 0) -> None:
            part = {k: v if v is None else v[:, start:stop] for k, v in vars(prompt).items()}
            if padding:
                part = {
                    k: v if v is None else torch.cat([v, v.new_zeros(1, padding, *v.shape[2:])], 1)
                    for k, v in part.items()
                }
            self.model.prefill(Batch(**part).to(self.model.device), cache)

        if prefix:

            def compute() -> list[Tensor]:
                exact = self.model.dtype == torch.float32 or self.model.device.type != "cpu"
                read(0, prefix, 0 if exact else min(-prefix % IN_ORDER, self.positions - prefix))
                return [kv[..., :prefix, :].clone() for kv in cache.layers]

            key = fingerprint(prompt.input_ids[:, :prefix], prompt.codes[:, :prefix])
            for kv, saved in zip(cache.layers, self.prefixes.get(key, compute), strict=True):
                kv[..., :prefix, :] = saved
            cache.length = prefix
        read(prefix, length)

    @torch.inference_mode()
    def run(self, steps: int) -> Tensor:
        """At most `steps_per_sync` steps for the occupied slots -> what they drew, [slots, steps, K + 1], on the CPU.

        See `DecodeState.outputs`. The host waits for the device here, once.
        """
        slots = 1 + max(slot for slot, position in enumerate(self.next_position) if position)
        if not self.exact:
            slots = min(1 << (slots - 1).bit_length(), self.slots)
        weights, cache, state = self._view(slots)
        full_vocab = any(self.full_vocab)
        self.state.output_step.zero_()
        for step in range(steps):
            needed = [min(position + step + 1, self.positions) for position in self.next_position[:slots]]
            if self.exact:
                decode_step(weights, cache, state, needed, full_vocab)
                continue
            kv_len = self._kv_bucket(max(needed))
            key, arguments = (slots, kv_len, full_vocab), (weights, cache, state, kv_len, full_vocab)
            if self.graphed is None:
                self._program(key)(*arguments)
            else:
                self.graphed(key, state.changed(), self._program(key), *arguments)
        self.next_position = [position and position + steps for position in self.next_position]
        self.outputs.copy_(self.state.outputs, non_blocking=True)
        if self.model.device.type != "cpu":
            torch.accelerator.current_stream(self.model.device).synchronize()
        return self.outputs[:, :steps]

    def _kv_bucket(self, needed: int) -> int:
        """How many positions attention reads: few different numbers where each one has to be compiled."""
        if self.compiled:
            return min(max(2 * KV_BUCKET, 1 << (needed - 1).bit_length()), self.positions)
        return min(-(-needed // KV_BUCKET) * KV_BUCKET, self.positions)

    def _program(self, key: tuple[int, int, bool]) -> Callable[..., None]:
        """The step for one set of shapes."""
        if key not in self._programs:
            self._programs[key] = compiled_copy(decode_step, self.model.device) if self.compiled else decode_step
        return self._programs[key]

    def _view(self, slots: int) -> tuple[FusedWeights, list[Tensor], DecodeState]:
        """The first slots of everything, always the same objects."""
        if slots not in self._views:
            weights = self.weights
            if self.model.dtype == torch.float32 and not self.compiled and not weights.native:
                weights = weights.expand(slots)  # `bmm` computes slots independently
            self._views[slots] = weights, [kv[:, :slots] for kv in self.cache.layers], self.state.first(slots)
        return self._views[slots]
