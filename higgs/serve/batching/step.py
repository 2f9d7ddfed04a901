"""One step of decoding: the newest columns through the model, the next ones drawn, and the state moved on.

Every function here is pure but `decode_step`, which writes the cache and the state in place; none waits for the
device. Rows that are idle or have ended go through the same operations, and what they yield is not read.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from higgs.serve.batching.fused_weights import FusedLayer, FusedWeights, Int8, Matrix
from higgs.serve.batching.state import NARROW, RUNNING, DecodeState
from higgs.serve.counter_rng import log_uniforms, race


def times_int8(x: Tensor, weight: Int8) -> Tensor:
    """x [B, 1, in] -> [B, 1, out]. On the CPU, one kernel; elsewhere, what torch.compile makes one of."""
    if x.device.type == "cpu":
        return torch._weight_int8pack_mm(x[:, 0], *weight)[:, None]
    return F.linear(x, weight.rows.to(x.dtype)) * weight.scales


def linear(x: Tensor, weight: Matrix, residual: Tensor | None = None) -> Tensor:
    """x [B, 1, in] times [in, out], or times B sheets of it [B, in, out] -> [B, 1, out], added to `residual`.

    Over sheets, each row is multiplied by itself, and its bits do not depend on how many there are: one matrix product
    of all rows is faster, and rounds otherwise for every height.
    """
    if isinstance(weight, Int8):
        product = times_int8(x, weight)
        return product if residual is None else residual + product
    if weight.dim() == 3:
        return torch.bmm(x, weight) if residual is None else torch.baddbmm(residual, x, weight)
    if weight.is_mkldnn:
        product = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    else:
        product = x @ weight
    return product if residual is None else residual + product


def rms_norm(x: Tensor, weight: Tensor, floor: Tensor) -> Tensor:
    """x sqrt(D) / sqrt(|x|^2 + D eps): `weight` holds sqrt(D) too, and `floor` is sqrt(D eps)."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide / torch.hypot(length, floor) * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """[B, heads, d]: the first half of the channels is paired with the second."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


def attend(q: Tensor, kept: Tensor, span: int | Sequence[int], mask: Tensor | None) -> Tensor:
    """q [B, kv heads, group, d], kept [2, B, kv heads, capacity, d] -> [B, kv heads, group, d].

    The queries that share a head of keys go as if they were positions. `span` is how many positions are read, with a
    mask [B, 1, 1, span] over them; or how many each row has filled, which needs none.
    """
    if mask is None:
        rows = []
        for b, length in enumerate(span):
            k, v = kept.narrow(1, b, 1).narrow(3, 0, length).unbind()
            rows.append(F.scaled_dot_product_attention(q.narrow(0, b, 1), k, v))
        return rows[0] if len(rows) == 1 else torch.cat(rows)
    k, v = kept[:, :, :, :span]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # Written out, it is compiled into what stands around it.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def keep(new: Tensor, kept: Tensor, place: tuple[Tensor, Tensor], span: int | Sequence[int]) -> None:
    """Writes keys and values [B, 2, kv heads, d] to their places (rows [B], positions [B]).

    Where `span` is exact, the newest position is its last: that of a row which has ended is beyond its end, and is not
    read.
    """
    if isinstance(span, int):
        row, position = place
        kept[:, row, :, position] = new
        return
    for b, length in enumerate(span):
        kept.select(1, b).select(2, length - 1).copy_(new[b])


def draw(logits: Tensor, state: DecodeState, top_k: Tensor, log_uniform: Tensor, width: int) -> Tensor:
    """[B, K, N + 2] -> [B, K]: temperature, top-k and top-p among the `width` likeliest, then one draw.

    As `process_logits`: ties with the k-th stay, and top-p keeps a code while the likelier ones before it sum to less
    than p.
    """
    ranked, order = (logits / state.temperature).topk(width)
    least = ranked.gather(-1, top_k)
    probabilities = ranked.masked_fill(ranked < least, -torch.inf).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    winner = race(probabilities * (before < state.top_p), log_uniform.gather(-1, order))
    return order.gather(-1, winner[..., None])[..., 0]


def choose(logits: Tensor, state: DecodeState, log_uniform: Tensor, wide: bool) -> Tensor:
    """[B, K, N + 2] -> [B, K]: drawn, and drawn again where the window holds the code too often.

    log_uniform [B, 2 K, N + 2]. `wide` is whether any row wants more than the `NARROW` likeliest; rows that do not are
    drawn as without it.
    """
    first, second = log_uniform.chunk(2, dim=1)
    top_k = state.top_k.clamp(max=NARROW - 1) if wide else state.top_k
    codes = draw(logits, state, top_k, first, NARROW)
    if wide:
        every = draw(logits, state, state.top_k, first, logits.shape[-1])
        codes = torch.where(state.wide, every, codes)
    repeats = (state.heard == codes[:, None]).sum(1)
    again = race(logits.softmax(-1), second)
    return torch.where(repeats >= state.ras_repeats, again, codes)


def delay(codes: Tensor, state: DecodeState, ordinal: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[B, K] as drawn -> (as the delay pattern allows them, how many codebooks have ended then [B, 1]).

    As `DelayState.apply`. Column n leaves codebooks n ... K - 1 at stream bos. The first codebook that draws stream
    eos ends those above it at once; with each further column one more ends. `ordinal` is 1 ... K.
    """
    K = codes.shape[1]
    codes = codes.masked_fill(ordinal > state.column[:, None], size)
    lowest = ordinal.expand_as(codes).masked_fill(codes != size + 1, K + 1).amin(-1, keepdim=True)
    ended = torch.where(state.ended > 0, state.ended + 1, lowest % (K + 1))
    return codes.masked_fill(state.ordinal < ended, size + 1), ended


def run_layer(
    x: Tensor,
    layer: FusedLayer,
    kept: Tensor,
    place: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor],
    floor: Tensor,
    span: int | Sequence[int],
    mask: Tensor | None,
) -> Tensor:
    """x [B, 1, D], kept [2, B, kv heads, capacity, d], place (rows [B], positions [B]) -> [B, 1, D]"""
    _, rows, kv_heads, _, d = kept.shape
    qkv = linear(rms_norm(x, layer.attention_norm, floor), layer.qkv).view(rows, -1, d)
    turned = rotate(qkv, *rope)
    heads = turned.shape[1] - 2 * kv_heads
    keep(turned[:, heads:].view(rows, 2, kv_heads, d), kept, place, span)
    mixed = attend(turned[:, :heads].view(rows, kv_heads, -1, d), kept, span, mask)
    x = linear(mixed.reshape(rows, 1, -1), layer.out, x)
    gate, up = linear(rms_norm(x, layer.ffn_norm, floor), layer.gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, layer.down, x)


def move_on(state: DecodeState, codes: Tensor, ended: Tensor) -> None:
    """Writes what a step drew. A row that was live has one column more, and lives on unless that was its last."""
    finished = ended[:, 0] >= codes.shape[1]
    kind = state.live * (finished + RUNNING)
    record = torch.cat([codes, kind[:, None]], dim=1)
    state.records.index_copy_(1, state.tick, record[:, None])
    state.tick.add_(1)
    state.heard.index_put_((state.rows, state.column % state.ras_window), codes)
    state.codes.copy_(codes)
    state.ended.copy_(ended)
    state.column.add_(state.live)
    state.position.add_(state.live)
    state.live.logical_and_(state.column < state.limit).logical_and_(~finished)


def decode_step(
    weights: FusedWeights,
    cache: Sequence[Tensor],
    state: DecodeState,
    span: int | Sequence[int],
    wide: bool,
) -> None:
    """One more column for every row that is live.

    `cache` holds [2, B, kv heads, capacity, d] for each layer. `span` as in `attend`: a number is a
    bound on all positions, and fixes the shapes; a list is exact. `wide` as in `choose`.
    """
    rows, K = state.codes.shape
    x = weights.embedding[weights.codebooks, state.codes].sum(1, keepdim=True)
    position = state.position[:, None]
    angles = position.expand(-1, len(weights.still)).masked_fill(weights.still, len(weights.rope) - 1)
    turns = weights.rope[angles]
    place, rope = (state.rows, state.position), turns.unbind(2)
    mask = None
    if isinstance(span, int):
        mask = (torch.arange(span, device=x.device) <= position)[:, None, None]
    for layer, kept in zip(weights.layers, cache, strict=True):
        x = run_layer(x, layer, kept, place, rope, weights.floor, span, mask)
    logits = linear(rms_norm(x, weights.norm, weights.floor), weights.head)
    logits = logits.float().view(rows, K, -1)
    logits[..., -2:].add_(state.barred)
    log_uniform = log_uniforms(state.keys[state.rows, state.column], weights.symbols)
    codes = choose(logits, state, log_uniform, wide)
    move_on(state, *delay(codes, state, weights.ordinal, logits.shape[-1] - 2))
