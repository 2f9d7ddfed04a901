"""What each slot of the batch carries from one decode step to the next: tensors that stay at their addresses.

A request keeps its slot from the prompt to its last step. Decode steps read and write these tensors on the device; the
host writes them when a request is prefilled (`start`) and reads the `outputs` of several steps at once.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from higgs.config import MAX_RAS_WINDOW, ModelConfig, SamplingConfig
from higgs.serve.counter_rng import step_keys

TIE_BREAK = -1e6  # the logarithms are above -16
SMALL_TOP_K = 64  # candidates that are sorted when no slot asks for more
IDLE, RUNNING, ENDED = 0, 1, 2  # what an output says of its step


@dataclass
class DecodeState:
    """B slots. Settings are tensors, so that slots with different ones go through the same operations."""

    codes: Tensor  # [B, K] int64: the newest delayed frame, which the model has not read yet
    step: Tensor  # [B] int64: the number of the next step in its segment; 0 is the one of stream bos
    position: Tensor  # [B] int64: where the keys and values of the newest frame go
    limit: Tensor  # [B] int64: how many steps the segment may have
    active: Tensor  # [B] bool: whether there is a next step
    num_finished: Tensor  # [B, 1] int64: how many codebooks, from the first, have ended
    recent_codes: Tensor  # [B, MAX_RAS_WINDOW, K] int64: the last steps, step n at place n mod ras_window; -1 is none
    keys: Tensor  # [B, capacity, 2 K, 2] int64: RNG keys of the draws of each step, and of drawing again
    temperature: Tensor  # [B, 1, 1]
    tie_break: Tensor  # [B, 1, 1]: times the code, added to the logarithms of uniform numbers; 0 unless greedy
    top_k: Tensor  # [B, K, 1] int64: rank of the last candidate
    top_p: Tensor  # [B, 1, 1]
    full_vocab: Tensor  # [B, 1] bool: whether more than SMALL_TOP_K candidates are sorted
    ras_window: Tensor  # [B] int64
    ras_repeats: Tensor  # [B, 1] int64
    logit_bias: Tensor  # [B, K, 2]: 0, or -inf for stream bos and eos that may not be drawn
    codebook_ids: Tensor  # [B, K] int64: 1 ... K; with strict_eos 0 ... K - 1
    outputs: Tensor  # [B, steps, K + 1] int64: what was drawn in each step, and IDLE, RUNNING or ENDED
    output_step: Tensor  # [1] int64: steps since the host read the outputs
    slots: Tensor  # [B] int64: 0 ... B - 1

    @classmethod
    def create(cls, config: ModelConfig, slots: int, capacity: int, steps: int, device: torch.device) -> "DecodeState":
        """All slots idle."""
        K = config.num_codebooks

        def full(*shape: int, fill: float = 0) -> Tensor:
            """int64, float32 or bool, as the value."""
            return torch.full((slots, *shape), fill, device=device)

        return cls(
            codes=full(K),
            step=full(),
            position=full(),
            limit=full(),
            active=full(fill=False),
            num_finished=full(1),
            recent_codes=full(MAX_RAS_WINDOW, K),
            keys=full(capacity, 2 * K, 2),
            temperature=full(1, 1, fill=1.0),
            tie_break=full(1, 1, fill=0.0),
            top_k=full(K, 1),
            top_p=full(1, 1, fill=1.0),
            full_vocab=full(1, fill=False),
            ras_window=full(fill=1),
            ras_repeats=full(1, fill=MAX_RAS_WINDOW + 1),
            logit_bias=full(K, 2, fill=0.0),
            codebook_ids=full(K) + torch.arange(1, K + 1, device=device),
            outputs=full(steps, K + 1),
            output_step=torch.zeros(1, device=device, dtype=torch.int64),
            slots=torch.arange(slots, device=device),
        )

    def first(self, slots: int) -> "DecodeState":
        """The first slots, over the same memory."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return DecodeState(**{k: v if k == "output_step" else v[:slots] for k, v in named.items()})

    def changed(self) -> list[Tensor]:
        """What a step writes."""
        names = ("codes", "step", "position", "active", "num_finished", "recent_codes", "outputs", "output_step")
        return [getattr(self, name) for name in names]

    def start(
        self, slot: int, position: int, limit: int, sampling: SamplingConfig, history: Tensor, config: ModelConfig
    ) -> None:
        """A request takes a slot. Its prompt fills `position` places, and a frame of stream bos follows.

        `limit` counts steps with that one; `history` [K, C] is the assistant's audio in the prompt.
        """
        K, device = config.num_codebooks, self.codes.device
        self.codes[slot] = config.stream_bos
        self.step[slot], self.position[slot], self.limit[slot] = 1, position, limit
        self.active[slot], self.num_finished[slot] = limit > 1, 0
        # The reference loop counts the steps of a request from 1, and opens the segment in the first.
        steps = torch.arange(1, limit + 1, device=device)
        self.keys[slot, :limit] = step_keys(sampling.seed, steps, K)
        greedy = sampling.greedy
        top_k = 1 if greedy else min(sampling.top_k or config.code_vocab_size, config.code_vocab_size)
        self.temperature[slot], self.tie_break[slot] = (1.0, TIE_BREAK) if greedy else (sampling.temperature, 0.0)
        self.top_k[slot], self.top_p[slot] = top_k - 1, sampling.top_p
        self.full_vocab[slot] = top_k > SMALL_TOP_K
        # The ring buffer of recent codes: step 0 of stream bos, and before it the history.
        window = sampling.ras_window or 1
        self.ras_window[slot] = window
        self.ras_repeats[slot] = MAX_RAS_WINDOW + 1 if sampling.ras_window is None else sampling.ras_max_repeats
        self.recent_codes[slot] = -1
        self.recent_codes[slot, 0] = config.stream_bos
        if before := min(window - 1, 0 if sampling.strict_eos else history.shape[1]):
            self.recent_codes[slot, window - before : window] = history[:, -before:].T
        self.logit_bias[slot] = 0
        self.codebook_ids[slot] = torch.arange(1, K + 1, device=device)
        if sampling.strict_eos:
            self.logit_bias[slot, :, 0] = self.logit_bias[slot, 1:, 1] = -torch.inf
            self.codebook_ids[slot] -= 1

    def free(self, slot: int) -> None:
        """The slot is idle: it goes along at the lowest cost until the next request."""
        self.active[slot], self.full_vocab[slot] = False, False
        self.step[slot] = self.position[slot] = self.top_k[slot] = 0
