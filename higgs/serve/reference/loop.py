"""The generation loop: text tokens one by one, then audio columns through the delay pattern, until the turn ends."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from higgs.batch import Batch
from higgs.config import SamplingConfig
from higgs.model.higgs_audio import HiggsAudio
from higgs.model.kv_cache import KVCache
from higgs.serve.counter_rng import Noise, make_noise
from higgs.serve.reference.sampler import sample_codes, sample_text
from higgs.tokens import TokenIds


@dataclass
class DelayState:
    """Where one audio segment stands in the delay pattern.

    `started` codebooks beyond the first have begun (0 ... K - 1). `remaining` counts the columns left once a
    codebook has ended; None before that. `strict` ends a segment by codebook 0 alone.
    """

    num_codebooks: int
    bos: int
    eos: int
    strict: bool = False
    started: int = 0
    remaining: int | None = None

    @classmethod
    def after(cls, column: Tensor, bos: int, eos: int, strict: bool = False) -> "DelayState":
        """Behind a column [K] of a segment that goes on."""
        size, ended = len(column), (column == eos).nonzero()
        remaining = size - 1 - int(ended[-1]) if len(ended) else None
        return cls(size, bos, eos, strict, size - int((column == bos).sum()), remaining)

    def restrict(self, logits: Tensor) -> Tensor:
        """[K, N + 2] -> the same; with `strict`, stream ids that no codebook may draw are -inf.

        A code is drawn everywhere, also where `apply` then writes a stream id.
        """
        if not self.strict:
            return logits
        logits = logits.clone()
        logits[:, self.bos] = -torch.inf
        logits[1 if self.remaining is None else 0 :, self.eos] = -torch.inf
        return logits

    def apply(self, codes: Tensor) -> tuple[Tensor, bool]:
        """A sampled column [K] -> (the column as the pattern allows it, whether the segment ends with it).

        The original's rules. Start: one more codebook begins with each column. End: at the first eos, in row e, the
        rows above it end at once; each further column ends one row more, and after K - 1 - e of them the segment ends.
        A row's own eos is the model's to draw; with `strict` (then e = 0) it is written.
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
    """One stretch of generated audio: delayed columns [K, C], the first all stream bos; whether it ended by itself."""

    columns: list[Tensor]
    finished: bool = False

    @property
    def delayed(self) -> Tensor:
        return torch.stack(self.columns, dim=1)


@dataclass
class Generation:
    """What one request made. `ids` holds one placeholder for each segment."""

    ids: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    steps: int = 0
    stop_reason: str = "length"


class Loop:
    """One request: a prompt already in the cache, and what was drawn since."""

    def __init__(
        self,
        model: HiggsAudio,
        ids: TokenIds,
        sampling: SamplingConfig,
        cache: KVCache,
        noise: Noise,
        heard: Tensor,
    ):
        self.model, self.ids, self.sampling, self.cache, self.noise = (
            model,
            ids,
            sampling,
            cache,
            noise,
        )
        self.history = heard  # [K, columns] of the assistant's audio so far, which repetition counting sees
        self.made = Generation()
        self.delay: DelayState | None = None
        self.unread = False  # whether the last column of a segment has still to be read
        # Placeholders have no embedding of their own: the text head must not choose them.
        self.forbidden = torch.tensor([ids.audio_in, ids.audio_out], device=model.device)

    def new_delay(self) -> DelayState:
        config = self.model.config
        strict = self.sampling.strict_eos
        return DelayState(config.num_codebooks, config.stream_bos, config.stream_eos, strict)

    def continue_segment(self, columns: Tensor) -> None:
        """A segment [K, C] at the prompt's end goes on, unless it is complete; it will start with these columns."""
        config, strict = self.model.config, self.sampling.strict_eos
        delay = DelayState.after(columns[:, -1], config.stream_bos, config.stream_eos, strict)
        if delay.remaining != 0:
            self.delay = delay
            self.made.segments.append(Segment(list(columns.unbind(1))))
            self.made.ids.append(self.ids.audio_out)

    def open_segment(self) -> None:
        config = self.model.config
        self.delay = self.new_delay()
        first = torch.full((config.num_codebooks,), config.stream_bos, device=self.model.device)
        self.made.segments.append(Segment([first]))
        self.made.ids.append(self.ids.audio_out)
        self.history = torch.cat([self.history, first[:, None]], dim=1)

    def text_step(self, hidden: Tensor) -> int:
        """hidden [1, D] -> the next text token."""
        logits = self.model.text_head(hidden)[0].float()
        if not self.sampling.parity:
            logits = logits.index_fill(0, self.forbidden, -torch.inf)
        token = int(sample_text(logits, self.made.steps, self.sampling, self.noise))
        if token == self.ids.audio_in or (token == self.ids.audio_out and not self.made.segments):
            raise ValueError("the text head chose an audio placeholder, and there is no audio for it")
        if token == self.ids.audio_out:
            # As in the original: the last segment goes on behind its own last column.
            self.delay, self.made.segments[-1].finished = self.new_delay(), False
        self.made.ids.append(token)
        return token

    def audio_step(self, hidden: Tensor) -> bool:
        """hidden [1, D] -> the next column, into the open segment; whether it was the last."""
        segment, strict = self.made.segments[-1], self.sampling.strict_eos
        logits = self.delay.restrict(self.model.audio_logits(hidden)[0])
        history = self.history[:, -len(segment.columns) :] if strict else self.history
        codes = sample_codes(logits, history, self.made.steps, self.sampling, self.noise)
        codes, ended = self.delay.apply(codes)
        segment.columns.append(codes)
        self.history = torch.cat([self.history, codes[:, None]], dim=1)
        if ended:
            segment.finished, self.delay, self.unread = True, None, strict
            self.made.ids.append(self.ids.audio_eos)
        return ended

    def feed(self, token: int) -> Tensor:
        """The newest token, or, inside a segment, the newest column, through the model -> hidden state [1, D].

        The original never reads a segment's last column, all eos, which training does; `strict_eos` reads it.
        """
        if self.delay is not None or self.unread:
            column = self.made.segments[-1].columns[-1]
            x = self.model.embed_codes(column[None, None])
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
    on_column: Callable[[int], None] | None = None,
) -> Generation:
    """A prompt of B = 1 -> text tokens and audio segments.

    The last id decides what a step does: after `audio_out_bos` (in the prompt, or chosen by the text head) a segment
    opens, and columns follow until the delay pattern has run out; then text again. A prompt that ends inside a segment
    is continued. Ends at a token of `stop_ids` (`stop_reason` "stop"), or after `max_new_tokens` tokens and columns
    ("length").
    """
    capacity = prompt.input_ids.shape[1] + max_new_tokens
    if sampling.strict_eos:
        # One position more for each segment, none of which is shorter than its delay pattern.
        capacity += 1 + max_new_tokens // (model.config.num_codebooks + 1)
    cache = KVCache(model.config, 1, capacity, model.device, model.dtype)
    hidden = model.prefill(prompt, cache)
    heard = prompt.codes[prompt.audio_out_mask].T
    loop = Loop(model, ids, sampling, cache, make_noise(sampling, model.device), heard)
    last = int(prompt.input_ids[0, -1])
    if last == ids.audio_out:
        frames = int(prompt.audio_out_mask[0].flip(0).long().cumprod(0).sum())
        loop.continue_segment(prompt.codes[0, -frames:].T)
    for step in range(max_new_tokens):
        loop.made.steps = step + 1
        if loop.delay is not None:
            last = ids.audio_eos if loop.audio_step(hidden) else ids.audio_out
            if on_column is not None:
                on_column(step)
        elif last == ids.audio_out_bos:
            loop.open_segment()
            last = ids.audio_out
        else:
            last = loop.text_step(hidden)
        if last in stop_ids:
            loop.made.stop_reason = "stop"
            break
        if step + 1 < max_new_tokens:
            hidden = loop.feed(last)
    return loop.made
