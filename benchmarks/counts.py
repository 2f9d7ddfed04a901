"""Operators, kernels and device synchronisations of a decoding step, here and in transformers.

    python -m benchmarks.counts

Counted, not timed: the numbers are the same on every run. A kernel is an operator that is no view. On a GPU, `make gpu`
counts kernels and waits by the profiler as well.
"""

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import Row, Table, arguments_of

WAITS = (
    "_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "equal.", "boolean index",
)  # fmt: skip
VIEWS = {
    "view", "_unsafe_view", "slice", "select", "unsqueeze", "squeeze", "expand", "transpose", "permute", "t", "split",
    "unbind", "alias", "as_strided", "lift_fresh", "detach",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts the operators that reach the dispatcher, by name."""

    def __init__(self):
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        if name.startswith("index.") and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]):
            name = "boolean index"
        self.seen[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def operators(self) -> int:
        return sum(self.seen.values())

    @property
    def kernels(self) -> int:
        return sum(n for name, n in self.seen.items() if name.split(".")[0] not in VIEWS)

    @property
    def waits(self) -> int:
        return sum(n for name, n in self.seen.items() if name.startswith(WAITS))


def of_our_step(model, prompt) -> Operations:
    """One step of a single request, outside of inference mode, in which operators reach the dispatcher in parts."""
    from higgs.config import SamplingConfig
    from higgs.serve.batching.slots import SlotDecoder
    from higgs.serve.batching.state import DecodeState
    from higgs.serve.batching.step import decode_step

    length = prompt.input_ids.shape[1]
    decoder = SlotDecoder(model, slots=1, positions=length + 40, steps_per_sync=4)
    decoder.prefill(0, prompt, 30, SamplingConfig(seed=1))
    weights, cache, state = decoder._view(1)
    state = DecodeState(**{name: tensor.clone() for name, tensor in vars(state).items()})
    cache = [layer.clone() for layer in cache]
    with torch.no_grad(), Operations() as seen:
        decode_step(weights, cache, state, [length + 1], False)
    return seen


def _their_run(port, prompt, steps: int, seed: int) -> tuple[int, int, int] | None:
    """Operators, kernels and waits of a run of `steps`; None if it ended before."""
    torch.manual_seed(seed)
    with Operations() as seen:
        generated = port.generate(
            input_ids=prompt.input_ids.to(port.device), attention_mask=prompt.attention_mask.long().to(port.device),
            do_sample=True, top_k=50, top_p=0.95, temperature=0.7, max_new_tokens=steps,
        )  # fmt: skip
    codes = generated if isinstance(generated, Tensor) else generated.audio_sequences
    return (seen.operators, seen.kernels, seen.waits) if codes.shape[1] == steps else None


def of_their_steps(port, prompt, few: int = 12, many: int = 22) -> dict[str, float]:
    """Of one step of the port's `generate`: the difference between a long run and a short one.

    The sampled codes follow the processor's rounding, and a run of random weights may end by itself. So the first seed
    counts with which neither run ends early. Raises RuntimeError if there is none among 20.
    """
    for seed in range(20):
        counted = [_their_run(port, prompt, steps, seed) for steps in (few, many)]
        if None not in counted:
            break
    else:
        raise RuntimeError("with each of 20 seeds transformers ended a run early")
    each = ((b - a) / (many - few) for a, b in zip(*counted, strict=True))
    return dict(zip(("operators", "kernels", "waits"), each, strict=True))


def on_a_gpu(model, prompt, mode: str) -> dict[str, tuple[float, str]]:
    """Kernels and waits of a step, from the profiler over a burst of 8, each with a note of what they were.

    `mode` is eager, graph or compiled. The profiler's own wait for the device at its end is among the waits.
    """
    from torch.profiler import ProfilerActivity, profile

    from higgs.config import SamplingConfig
    from higgs.serve.batching.slots import SlotDecoder

    decoder = SlotDecoder(model, slots=1, positions=1024, steps_per_sync=8, compiled=mode == "compiled")
    decoder.graphed = None if mode == "eager" else decoder.graphed
    decoder.prefill(0, prompt, 400, SamplingConfig(seed=1))
    decoder.run(8)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        decoder.run(8)
    names = [(e.device_type == torch.autograd.DeviceType.CUDA, e.name) for e in seen.events()]
    kernels = Counter(name for on_gpu, name in names if on_gpu)
    waits = Counter(name for _, name in names if "Synchronize" in name)
    found = {"kernels": kernels, "waits": waits}
    return {
        what: (counted.total() / 8, ", ".join(f"{n} {name:.60}" for name, n in counted.most_common(6)))
        for what, counted in found.items()
    }


def main() -> None:
    from benchmarks.decode import SMALL, TINY, port_of, prompt_of, random_model

    arguments = arguments_of(__doc__).parse_args()
    table = Table(arguments)
    for case, config in (("96 wide, 3 layers", TINY), ("512 wide, 6 layers (22 M)", SMALL)):
        model, prompt = random_model(config, "cpu", torch.float32), prompt_of(100, config)
        theirs, ours = of_their_steps(port_of(model), prompt), of_our_step(model, prompt)
        for what, peer in theirs.items():
            mine = getattr(ours, what)
            table.show([Row(case, f"{what} in a step", mine, peer, peer / mine if mine else None)])
    table.write()


if __name__ == "__main__":
    main()
