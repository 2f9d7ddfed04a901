"""The reference loop: text tokens one by one, then delayed frames through the delay pattern, until the turn ends.

It computes one request with the plain model, as the reference implementation (boson-ai/higgs-audio) does; the batched
decode step is tested against it. Text before audio, and `parity`, are only here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.kv_cache import KVCache
from higgs.serve.counter_rng import Rng, make_rng
from higgs.serve.reference.sampler import sample_codes, sample_text
from higgs.tokens import TokenIds


@dataclass
class DelayState:
    """The state of one audio segment in the delay pattern.

    `started` codebooks beyond the first have begun (0 ... K - 1). `remaining` counts the steps left once a
    codebook has ended; None before that. `strict` ends a segment by codebook 0 alone.
    """

    num_codebooks: int
    bos: int
    eos: int
    strict: bool = False
    started: int = 0
    remaining: int | None = None

    @classmethod
    def after(cls, frame: Tensor, bos: int, eos: int, strict: bool = False) -> "DelayState":
        """After a delayed frame [K] of a segment that goes on."""
        size, ended = len(frame), (frame == eos).nonzero()
        remaining = size - 1 - int(ended[-1]) if len(ended) else None
        return cls(size, bos, eos, strict, size - int((frame == bos).sum()), remaining)

    def restrict(self, logits: Tensor) -> Tensor:
        """[K, N + 2] -> the same; with `strict`, stream ids that no codebook may draw are -inf.

        A code is drawn for every codebook, also where `apply` then writes a stream id.
        """
        if not self.strict:
            return logits
        logits = logits.clone()
        logits[:, self.bos] = -torch.inf
        logits[1 if self.remaining is None else 0 :, self.eos] = -torch.inf
        return logits

    def apply(self, codes: Tensor) -> tuple[Tensor, bool]:
        """Sampled codes [K] -> (the delayed frame that the pattern allows, whether the segment ends with it).

        The reference's rules. Start: one more codebook begins with each step. End: at the first eos, in codebook e, the
        codebooks below e end at once; each further step ends one more, and after K - 1 - e of them the segment ends.
        A codebook's own eos is the model's to draw; with `strict` (then e = 0) it is written.
        """
        codes = codes.clone()
        if self.started + 1 < self.num_codebooks:
            self.started += 1
            codes[self.started :] = self.bos
        if self.remaining is not None:
            codes[: self.num_codebooks - self.remaining + self.strict] = self.eos
            self.remaining -= 1
        else:
            ended = (codes == self.eos).nonzero()
            if len(ended):
                first = int(ended[0])
                codes[:first] = self.eos
                self.remaining = self.num_codebooks - first - 1
        return codes, self.remaining is not None and self.remaining <= 0


@dataclass
class Segment:
    """One segment of generated audio: delayed frames [K], the first all stream bos; whether it ended by itself."""

    frames: list[Tensor]
    finished: bool = False

    @property
    def delayed(self) -> Tensor:
        return torch.stack(self.frames, dim=1)


@dataclass
class Generation:
    """The result of one request. `ids` holds one placeholder for each segment."""

    ids: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    steps: int = 0
    stop_reason: str = "length"


class Loop:
    """One request: a prompt already in the cache, and what was drawn since.

    `history` [K, C] is the assistant's audio so far, which repetition-aware sampling counts in.
    """

    def __init__(self, model: HiggsAudio, ids: TokenIds, sampling: SamplingConfig, cache: KVCache, history: Tensor):
        self.model, self.ids, self.sampling, self.cache, self.history = model, ids, sampling, cache, history
        self.rng: Rng = make_rng(sampling, model.device)
        self.result = Generation()
        self.delay: DelayState | None = None
        self.unread = False  # whether the model has still to read the last frame of a segment
        # Placeholders have no embedding of their own: the text head must not choose them.
        self.forbidden = torch.tensor([ids.audio_in, ids.audio_out], device=model.device)

    def new_delay(self) -> DelayState:
        config = self.model.config
        return DelayState(config.num_codebooks, config.stream_bos, config.stream_eos, self.sampling.strict_eos)

    def continue_segment(self, frames: Tensor) -> None:
        """A segment [K, C] at the prompt's end goes on, unless it is complete; the result begins with these frames."""
        config, strict = self.model.config, self.sampling.strict_eos
        delay = DelayState.after(frames[:, -1], config.stream_bos, config.stream_eos, strict)
        if delay.remaining != 0:
            self.delay = delay
            self.result.segments.append(Segment(list(frames.unbind(1))))
            self.result.ids.append(self.ids.audio_out)

    def open_segment(self) -> None:
        config = self.model.config
        self.delay = self.new_delay()
        first = torch.full((config.num_codebooks,), config.stream_bos, device=self.model.device)
        self.result.segments.append(Segment([first]))
        self.result.ids.append(self.ids.audio_out)
        self.history = torch.cat([self.history, first[:, None]], dim=1)

    def text_step(self, hidden: Tensor) -> int:
        """hidden [1, D] -> the next text token."""
        logits = self.model.text_head(hidden)[0].float()
        if not self.sampling.parity:
            logits = logits.index_fill(0, self.forbidden, -torch.inf)
        token = int(sample_text(logits, self.result.steps, self.sampling, self.rng))
        if token == self.ids.audio_in or (token == self.ids.audio_out and not self.result.segments):
            raise ValueError("the text head chose an audio placeholder, and there is no audio for it")
        if token == self.ids.audio_out:
            # As in the reference: the last segment goes on after its own last frame.
            self.delay, self.result.segments[-1].finished = self.new_delay(), False
        self.result.ids.append(token)
        return token

    def audio_step(self, hidden: Tensor) -> bool:
        """hidden [1, D] -> the next delayed frame, into the open segment; whether it was the last."""
        segment, strict = self.result.segments[-1], self.sampling.strict_eos
        logits = self.delay.restrict(self.model.audio_logits(hidden)[0])
        history = self.history[:, -len(segment.frames) :] if strict else self.history
        codes = sample_codes(logits, history, self.result.steps, self.sampling, self.rng)
        codes, ended = self.delay.apply(codes)
        segment.frames.append(codes)
        self.history = torch.cat([self.history, codes[:, None]], dim=1)
        if ended:
            segment.finished, self.delay, self.unread = True, None, strict
            self.result.ids.append(self.ids.audio_eos)
        return ended

    def feed(self, token: int) -> Tensor:
        """The newest token, or, inside a segment, the newest frame, through the model -> hidden state [1, D].

        The reference never reads a segment's last frame, all eos, which training does; `strict_eos` reads it.
        """
        if self.delay is not None or self.unread:
            frame = self.result.segments[-1].frames[-1]
            x = self.model.embed_codes(frame[None, None])
            hidden = self.model.decode_step(x, True, self.cache)
            if not self.unread:
                return hidden
            self.unread = False
        ids = torch.tensor([[token]], device=self.model.device)
        return self.model.decode_step(self.model.text_embedding(ids), False, self.cache)


@torch.inference_mode()
def generate(
    model: HiggsAudio,
    prompt: Batch,
    ids: TokenIds,
    sampling: SamplingConfig,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    on_step: Callable[[int], None] | None = None,
) -> Generation:
    """A prompt of B = 1 -> text tokens and audio segments.

    The last id decides what a step does: after `audio_out_bos` (in the prompt, or chosen by the text head) a segment
    opens, and frames follow until the delay pattern has run out; then text again. A prompt that ends inside a segment
    is continued. Ends at a token of `stop_ids` (`stop_reason` "stop"), or after `max_new_tokens` tokens and frames
    ("length").
    """
    capacity = prompt.input_ids.shape[1] + max_new_tokens
    if sampling.strict_eos:
        # One position more for each segment, none of which is shorter than its delay pattern.
        capacity += 1 + max_new_tokens // (model.config.num_codebooks + 1)
    cache = KVCache(model.config, 1, capacity, model.device, model.dtype)
    hidden = model.prefill(prompt, cache)
    loop = Loop(model, ids, sampling, cache, history=prompt.codes[prompt.audio_out_mask].T)
    last = int(prompt.input_ids[0, -1])
    if last == ids.audio_out:
        length = int(prompt.audio_out_mask[0].flip(0).long().cumprod(0).sum())
        loop.continue_segment(prompt.codes[0, -length:].T)
    for step in range(max_new_tokens):
        loop.result.steps = step + 1
        if loop.delay is not None:
            last = ids.audio_eos if loop.audio_step(hidden) else ids.audio_out
            if on_step is not None:
                on_step(step)
        elif last == ids.audio_out_bos:
            loop.open_segment()
            last = ids.audio_out
        else:
            last = loop.text_step(hidden)
        if last in stop_ids:
            loop.result.stop_reason = "stop"
            break
        if step + 1 < max_new_tokens:
            hidden = loop.feed(last)
    return loop.result
