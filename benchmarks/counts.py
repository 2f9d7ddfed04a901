"""What a step of decoding asks of PyTorch, here and in transformers: operators, kernels, and waits for the device.

    python -m benchmarks.counts

Counted, not timed: the numbers are the same on every run. A kernel is an operator that is no view. On a GPU the
profiler counts the kernels and the waits of several steps as well.
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
    """What reaches the dispatcher, by name."""

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
    """One step of a request alone, outside of inference mode, in which operators reach the dispatcher in parts."""
    from higgs.config import SamplingConfig
    from higgs.serve.batching.slots import SlotDecoder
    from higgs.serve.batching.state import DecodeState
    from higgs.serve.batching.step import decode_step

    length = prompt.input_ids.shape[1]
    decoder = SlotDecoder(model, slots=1, positions=length + 40, steps_per_sync=4)
    decoder.prefill(0, prompt, 30, SamplingConfig(seed=1))
    weights, cache, state = decoder._view(1)
    state = DecodeState(**{name: tensor.clone() for name, tensor in vars(state).items()})
    cache = [kv.clone() for kv in cache]
    with torch.no_grad(), Operations() as seen:
        decode_step(weights, cache, state, [length + 1], False)
    return seen


def of_their_steps(port, prompt, few: int = 12, many: int = 22) -> dict[str, float]:
    """Of one step of the port's `generate`: the difference between a long run and a short one."""
    counted = []
    for steps in (few, many):
        with Operations() as seen:
            port.generate(
                input_ids=prompt.input_ids.to(port.device), attention_mask=prompt.attention_mask.long().to(port.device),
                do_sample=True, top_k=50, top_p=0.95, temperature=0.7, max_new_tokens=steps,
            )  # fmt: skip
        counted.append((seen.operators, seen.kernels, seen.waits))
    each = ((b - a) / (many - few) for a, b in zip(*counted, strict=True))
    return dict(zip(("operators", "kernels", "waits"), each, strict=True))


def on_a_gpu(model, prompt) -> list[Row]:
    """Kernels and waits per step of replayed graphs, and of one eager step, from the profiler."""
    from torch.profiler import ProfilerActivity, profile

    from higgs.config import SamplingConfig
    from higgs.serve.batching.slots import SlotDecoder

    rows = []
    for mode, graphs in (("graph", True), ("eager", False)):
        decoder = SlotDecoder(model, slots=1, positions=1024, steps_per_sync=8)
        decoder.graphed = decoder.graphed if graphs else None
        decoder.prefill(0, prompt, 400, SamplingConfig(seed=1))
        decoder.run(8)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            decoder.run(8)
        events = seen.events()
        kernels = sum(e.device_type == torch.autograd.DeviceType.CUDA for e in events) / 8
        waits = sum("Synchronize" in e.name for e in events) / 8
        rows += [Row("GPU", f"{mode}: kernels in a step", kernels)]
        rows += [Row("GPU", f"{mode}: waits in a step", waits)]
    return rows


def main() -> None:
    from benchmarks.decode import SMALL, TINY, port_of, prompt_of, random_model
    from higgs.config import ModelConfig

    arguments = arguments_of(__doc__).parse_args()
    table = Table(arguments)
    for case, config in (("96 wide, 3 layers", TINY), ("512 wide, 6 layers (22 M)", SMALL)):
        model, prompt = random_model(config, "cpu", torch.float32), prompt_of(100, config)
        theirs, ours = of_their_steps(port_of(model), prompt), of_our_step(model, prompt)
        for what, peer in theirs.items():
            mine = getattr(ours, what)
            table.show([Row(case, f"{what} in a step", mine, peer, peer / mine if mine else None)])
    if torch.cuda.is_available():
        model = random_model(ModelConfig(), "cuda", torch.bfloat16)
        table.show(on_a_gpu(model, prompt_of(300, ModelConfig())))
    else:
        print("kernels on a GPU: not measured, there is no CUDA device")
    table.write()


if __name__ == "__main__":
    main()
