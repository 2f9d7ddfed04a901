"""int8 and int4 of this package beside those of PyTorch, torchao and bitsandbytes: memory, time, error.

    python -m benchmarks.peers          # torchao and bitsandbytes where they can be imported; nothing else needs them

Time: one row in bfloat16 times matrices of the released shapes, more of them than the cache holds, all in turns with
reading as much memory. Error: of such a product, and of the logits of the 22 M model with random weights, all of whose
linear layers but the head of codes are rounded, beside the exact model. All of it is rounding to the nearest.
"""

import json
import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.decode import SMALL, random_model
from benchmarks.precision import code_logits
from benchmarks.timing import Measure, Times, arguments_of, clock, machine, middle, scaled, since, take_turns
from higgs.model import matrices
from higgs.model.matrices import GROUP, MatrixLinear, quantize

SHAPES = ((5120, 3072), (3072, 3072), (16384, 3072), (3072, 8192))  # of one layer: qkv, out, gate and up, down
COPIES = 2  # of a layer, each with weights of its own: in int4 104 MB, more than caches hold
Form = Callable[[Tensor], nn.Module]  # a weight [out, in] in bfloat16 -> a layer


def dense(weight: Tensor) -> nn.Module:
    layer = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def our_form(bits: int) -> Form:
    return lambda weight: MatrixLinear(quantize(weight, bits), (len(weight),))


def in_groups_of_32(weight: Tensor) -> nn.Module:
    """Its error only: there is no kernel for it."""
    with patch.object(matrices, "GROUP", 32):
        return dense(matrices.dequantize(quantize(weight, 4), torch.bfloat16))


class Int4Pack(nn.Module):
    """PyTorch's own int4 product on the CPU: groups with a scale and a zero point."""

    def __init__(self, weight: Tensor, group: int):
        super().__init__()
        self.group, groups = group, weight.float().unflatten(1, (-1, group))
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / 15).clamp(min=1e-6)
        codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).flatten(1).int()
        self.values = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.scales = torch.stack([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.values, self.group, self.scales)
        return product.unflatten(0, x.shape[:-1])


def torchao_form(config: Callable[[], object]) -> Form:
    def form(weight: Tensor) -> nn.Module:
        from torchao.quantization import quantize_

        parent = nn.Sequential(dense(weight))
        quantize_(parent, config())
        return parent[0]

    return form


def torchao_int8() -> object:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def torchao_int4(group: int) -> Callable[[], object]:
    def config() -> object:
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group, set_inductor_config=False)

    return config


def bitsandbytes_int8(weight: Tensor) -> nn.Module:
    import bitsandbytes

    layer = bitsandbytes.nn.Linear8bitLt(*weight.shape[::-1], bias=False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu").eval()


def bitsandbytes_4bit(kind: str) -> Form:
    def form(weight: Tensor) -> nn.Module:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(
            *weight.shape[::-1], bias=False, compute_dtype=torch.bfloat16, compress_statistics=False, quant_type=kind
        )
        layer.weight = bitsandbytes.nn.Params4bit(
            weight, requires_grad=False, blocksize=64, compress_statistics=False, quant_type=kind
        )
        return layer.to("cpu").eval()

    return form


FORMS: dict[str, Form] = {
    "bfloat16, not packed": dense,
    "int8, ours": our_form(8),
    "int8, torchao": torchao_form(torchao_int8),
    "int8, bitsandbytes (activations too)": bitsandbytes_int8,
    f"int4, ours, groups of {GROUP}": our_form(4),
    "int4, ours if groups were of 32, as floats": in_groups_of_32,
    "int4, PyTorch, groups of 64": lambda weight: Int4Pack(weight, 64),
    "int4, PyTorch, groups of 32": lambda weight: Int4Pack(weight, 32),
    "int4, torchao (prototype), groups of 64": torchao_form(torchao_int4(64)),
    "int4, torchao (prototype), groups of 32": torchao_form(torchao_int4(32)),
    "nf4, bitsandbytes, groups of 64": bitsandbytes_4bit("nf4"),
    "fp4, bitsandbytes, groups of 64": bitsandbytes_4bit("fp4"),
}


def held(layer: nn.Module) -> int:
    """Bytes of everything that a layer keeps."""

    def size(thing: object) -> int:
        if isinstance(thing, Tensor) and hasattr(thing, "__tensor_flatten__"):
            return sum(size(getattr(thing, name)) for name in thing.__tensor_flatten__()[0])
        own = thing.nbytes if isinstance(thing, Tensor) else 0
        own += sum(size(part) for part in thing) if isinstance(thing, tuple | list) else 0
        state = getattr(thing, "quant_state", None)
        return own + (size(state.absmax) if state is not None else 0)

    things = {**layer._parameters, **layer._buffers}
    things |= {name: value for name, value in vars(layer).items() if name in ("matrix", "values", "scales")}
    return sum(size(thing) for thing in things.values() if thing is not None)


@torch.inference_mode()
def in_a_model(form: Form) -> Tensor:
    """Logits of codes [S, K, N + 2] at a prompt's audio positions, with every layer's matrices in that form."""
    model = random_model(SMALL, "cpu", torch.bfloat16)
    for layer in model.layers:
        for part in layer.modules():
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, form(child.weight.data))
    return code_logits(model, SMALL)


@torch.inference_mode()
def exact_logits() -> Tensor:
    return code_logits(random_model(SMALL, "cpu", torch.bfloat16).float(), SMALL)


def timed(layers: list[nn.Module], rows: list[Tensor]) -> Measure:
    """All of them, once."""

    @torch.inference_mode()
    def measure() -> Times:
        started = clock("cpu")
        for layer, row in zip(layers, rows, strict=True):
            layer(row)
        return since(started)

    return measure


@torch.inference_mode()
def made(form: Form, weights: list[Tensor], rows: list[Tensor]) -> tuple[list[nn.Module], float]:
    """-> layers of that form, and the error of their products."""
    layers = [form(weight.clone()) for weight in weights]
    pairs = [(layer(row), row.float() @ w.float().t()) for layer, row, w in zip(layers, rows, weights, strict=True)]
    errors = [float((product.float() - exact).norm() / exact.norm()) for product, exact in pairs]
    return layers, sum(errors) / len(errors)


def main() -> None:
    arguments = arguments_of(__doc__).parse_args()
    logging.disable(logging.WARNING)  # bitsandbytes says at each product that it casts
    torch.set_num_threads(arguments.threads)
    print(machine(arguments), {package: installed(package) for package in ("torchao", "bitsandbytes")})
    generator = torch.Generator().manual_seed(0)
    weights = [(torch.randn(s, generator=generator) * s[1] ** -0.5).bfloat16() for s in COPIES * SHAPES]
    rows = [torch.randn(1, weight.shape[1], generator=generator).bfloat16() for weight in weights]
    memory, exact = torch.randn(1 << 27), exact_logits()

    def read() -> Times:
        started = clock("cpu")
        memory.sum()
        return scaled(since(started), 1e9 / memory.nbytes)  # a gigabyte

    results: dict[str, dict[str, float | str]] = {}
    measures: dict[str, Measure] = {"read": read}
    for name, form in FORMS.items():
        try:
            layers, error = made(form, weights, rows)
            size, logits = sum(map(held, layers)), in_a_model(form)
        except Exception as fault:  # a peer that cannot be made here is a line of the table, too
            results[name] = {"cannot run": f"{type(fault).__name__}: {fault}"[:300]}
            continue
        results[name] = {
            "bits": 8 * size / sum(w.numel() for w in weights), "error": error, "MB": size / 1e6,
            "logits": float((logits - exact).norm() / exact.norm()),
            "same": float((logits.argmax(-1) == exact.argmax(-1)).float().mean()),
        }  # fmt: skip
        measures[name] = timed(layers, rows)
    times = take_turns(measures, arguments.repeats)
    rate = 1000 / middle(times["read"])[1]
    print(f"reading: {rate:.1f} GB/s")
    for name, found in results.items():
        if "cannot run" in found:
            print(f"{name}: {found['cannot run']}")
            continue
        found["ms"] = middle(times[name])[1] / COPIES
        found["GB/s"] = found["MB"] / COPIES / found["ms"]
        print(
            "{name}: {bits:.2f} bits a weight, {ms:.2f} CPU ms a layer, {GB/s:.1f} GB/s ({share:.0%} of reading), "
            "error of a product {error:.2%}, of the logits {logits:.2%}, the same likeliest code {same:.1%}".format(
                name=name, share=found["GB/s"] / rate, **found
            ),
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"reading GB/s": rate} | results, indent=2) + "\n")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
