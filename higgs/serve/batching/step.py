"""One decode step: the newest delayed frames through the model, the next ones drawn, the state moved on.

All functions are pure but `write_kv`, `advance` and `decode_step`, which write the cache and the state in place; none
waits for the device. Slots that are idle or have ended go through the same operations, and their outputs are not read.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from higgs.model import matrices
from higgs.model.matrices import Matrix, Quantized
from higgs.serve.batching.fused_weights import FusedLayer, FusedWeights
from higgs.serve.batching.state import RUNNING, SMALL_TOP_K, DecodeState
from higgs.serve.counter_rng import exponential_race, log_uniforms


def linear(x: Tensor, weight: Matrix, residual: Tensor | None = None) -> Tensor:
    """x [B, 1, in] times [in, out], or times batch-expanded [B, in, out] -> [B, 1, out], added to `residual`.

    With batch-expanded weights each slot is multiplied by itself, and its bits do not depend on the number of slots:
    one product of all slots is faster, and rounds differently for every batch size.
    """
    if isinstance(weight, Quantized) or weight.is_mkldnn:
        product = matrices.linear(x, weight)
    elif weight.dim() == 3:
        return torch.bmm(x, weight) if residual is None else torch.baddbmm(residual, x, weight)
    else:
        product = x @ weight
    return product if residual is None else residual + product


def rms_norm(x: Tensor, weight: Tensor, epsilon: Tensor) -> Tensor:
    """As the model's norm. In 16 bits it rounds where that one does, so that the bits are the same.

    In float32 it is x sqrt(D) / sqrt(|x|^2 + D eps): `weight` holds sqrt(D) too, and `epsilon` is sqrt(D eps).
    """
    x32 = x.float()
    if x.dtype != torch.float32:
        return weight * (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)
    length = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
    return x32 / torch.hypot(length, epsilon) * weight


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """[B, heads, d]: the first half of the channels is paired with the second. In 16 bits rounded as the model's."""
    turned = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, turned, signed_sin) if x.dtype == torch.float32 else x * cos + turned * signed_sin


def attend(q: Tensor, kv: Tensor, kv_len: int | Sequence[int], mask: Tensor | None) -> Tensor:
    """q [B, kv heads, group, d], kv [2, B, kv heads, capacity, d] -> [B, kv heads, group, d].

    The queries that share a head of keys are passed as if they were positions. `kv_len` is how many positions are read,
    with a mask [B, 1, 1, kv_len] over them; or how many each slot has filled, which needs no mask.
    """
    if mask is None:
        mixed = []
        for b, length in enumerate(kv_len):
            k, v = kv.narrow(1, b, 1).narrow(3, 0, length).unbind()
            mixed.append(F.scaled_dot_product_attention(q.narrow(0, b, 1), k, v))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    k, v = kv[:, :, :, :kv_len]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # Written out, so that it is compiled into what surrounds it.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def write_kv(new: Tensor, kv: Tensor, place: tuple[Tensor, Tensor], kv_len: int | Sequence[int]) -> None:
    """Writes keys and values [B, 2, kv heads, d] to their places (slots [B], positions [B]).

    With exact lengths the newest position is the last; that of a slot which has ended is beyond its end, and not read.
    """
    if isinstance(kv_len, int):
        slots, positions = place
        kv[:, slots, :, positions] = new
        return
    for b, length in enumerate(kv_len):
        kv.select(1, b).select(2, length - 1).copy_(new[b])


def draw(logits: Tensor, state: DecodeState, top_k: Tensor, log_uniform: Tensor, candidates: int) -> Tensor:
    """[B, K, N + 2] -> [B, K]: temperature, top-k and top-p among the likeliest `candidates`, then one draw.

    As `process_logits`: ties with the k-th stay, and top-p keeps a code while the likelier ones before it sum to less
    than p.
    """
    ranked, order = (logits / state.temperature).topk(min(candidates, logits.shape[-1]))
    least = ranked.gather(-1, top_k)
    probabilities = ranked.masked_fill(ranked < least, -torch.inf).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    # Of equals, which are common in 16 bits, a greedy draw is the first: there `tie_break` outweighs chance.
    chance = torch.addcmul(log_uniform.gather(-1, order), order, state.tie_break)
    drawn = exponential_race(probabilities * (before < state.top_p), chance)
    return order.gather(-1, drawn[..., None])[..., 0]


def sample(logits: Tensor, state: DecodeState, log_uniform: Tensor, full_vocab: bool) -> Tensor:
    """[B, K, N + 2] -> [B, K]: drawn, and drawn again where the RAS window holds the code too often.

    log_uniform [B, 2 K, N + 2]. `full_vocab` is whether any slot wants more than `SMALL_TOP_K` candidates; slots that
    do not are drawn as without it.
    """
    first, second = log_uniform.chunk(2, dim=1)
    top_k = state.top_k.clamp(max=SMALL_TOP_K - 1) if full_vocab else state.top_k
    codes = draw(logits, state, top_k, first, SMALL_TOP_K)
    if full_vocab:
        every = draw(logits, state, state.top_k, first, logits.shape[-1])
        codes = torch.where(state.full_vocab, every, codes)
    repeats = (state.recent_codes == codes[:, None]).sum(1)
    redrawn = exponential_race(logits.softmax(-1), second)
    return torch.where(repeats >= state.ras_repeats, redrawn, codes)


def delay(codes: Tensor, state: DecodeState, codebook_ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[B, K] as drawn -> (as the delay pattern allows them, how many codebooks have ended then [B, 1]).

    As `DelayState.apply`. Step n leaves codebooks n ... K - 1 at stream bos. The first codebook that draws stream
    eos ends those above it at once; with each further step one more ends. `codebook_ids` is 1 ... K.
    """
    K = codes.shape[1]
    codes = codes.masked_fill(codebook_ids > state.step[:, None], size)
    lowest = codebook_ids.expand_as(codes).masked_fill(codes != size + 1, K + 1).amin(-1, keepdim=True)
    num_finished = torch.where(state.num_finished > 0, state.num_finished + 1, lowest % (K + 1))
    return codes.masked_fill(state.codebook_ids < num_finished, size + 1), num_finished


def run_layer(
    x: Tensor,
    layer: FusedLayer,
    kv: Tensor,
    place: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor],
    norm_epsilon: Tensor,
    kv_len: int | Sequence[int],
    mask: Tensor | None,
) -> Tensor:
    """x [B, 1, D], kv [2, B, kv heads, capacity, d], place (slots [B], positions [B]) -> [B, 1, D]"""
    _, slots, kv_heads, _, d = kv.shape
    qkv = linear(rms_norm(x, layer.attention_norm, norm_epsilon), layer.qkv).view(slots, -1, d)
    rotated = rotate(qkv, *rope)
    heads = rotated.shape[1] - 2 * kv_heads
    write_kv(rotated[:, heads:].view(slots, 2, kv_heads, d), kv, place, kv_len)
    mixed = attend(rotated[:, :heads].view(slots, kv_heads, -1, d), kv, kv_len, mask)
    x = linear(mixed.reshape(slots, 1, -1), layer.out, x)
    gate, up = linear(rms_norm(x, layer.ffn_norm, norm_epsilon), layer.gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, layer.down, x)


def run_layers(
    x: Tensor, weights: FusedWeights, cache: Sequence[Tensor], state: DecodeState, kv_len: int | Sequence[int]
) -> Tensor:
    """x [B, 1, D] -> logits [B, 1, K (N + 2)], by one call where the weights are laid out for it."""
    if weights.native:
        x = weights.native(x, cache, state.position)
        return x if x.dtype == torch.float32 else linear(x, weights.head)
    position = state.position[:, None]
    angles = position.expand(-1, len(weights.no_rope)).masked_fill(weights.no_rope, len(weights.rope) - 1)
    place, rope = (state.slots, state.position), weights.rope[angles].unbind(2)
    mask = None
    if isinstance(kv_len, int):
        mask = (torch.arange(kv_len, device=x.device) <= position)[:, None, None]
    for layer, kv in zip(weights.layers, cache, strict=True):
        x = run_layer(x, layer, kv, place, rope, weights.norm_epsilon, kv_len, mask)
    return linear(rms_norm(x, weights.norm, weights.norm_epsilon), weights.head)


def advance(state: DecodeState, codes: Tensor, num_finished: Tensor) -> None:
    """Writes what a step drew. A slot that was active has one step more, and stays active unless that was its last."""
    finished = num_finished[:, 0] >= codes.shape[1]
    kind = state.active * (finished + RUNNING)
    output = torch.cat([codes, kind[:, None]], dim=1)
    state.outputs.index_copy_(1, state.output_step, output[:, None])
    state.output_step.add_(1)
    state.recent_codes.index_put_((state.slots, state.step % state.ras_window), codes)
    state.codes.copy_(codes)
    state.num_finished.copy_(num_finished)
    state.step.add_(state.active)
    state.position.add_(state.active)
    state.active.logical_and_(state.step < state.limit).masked_fill_(finished, False)


def decode_step(
    weights: FusedWeights, cache: Sequence[Tensor], state: DecodeState, kv_len: int | Sequence[int], full_vocab: bool
) -> None:
    """One more delayed frame for every active slot.

    `cache` holds [2, B, kv heads, capacity, d] for each layer. `kv_len` as in `attend`: a number is a bound on all
    positions, and fixes the shapes; a list is exact. `full_vocab` as in `sample`.
    """
    slots, K = state.codes.shape
    x = weights.embedding[weights.codebooks, state.codes].sum(1, keepdim=True)
    logits = run_layers(x, weights, cache, state, kv_len).float().view(slots, K, -1)
    logits[..., -2:].add_(state.logit_bias)
    log_uniform = log_uniforms(state.keys[state.slots, state.step], weights.token_hashes)
    codes = sample(logits, state, log_uniform, full_vocab)
    advance(state, *delay(codes, state, weights.codebook_ids, logits.shape[-1] - 2))
