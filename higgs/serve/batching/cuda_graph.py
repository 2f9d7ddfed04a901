"""A step as one CUDA graph: the whole of it, sampling included, started by one call and not by hundreds."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class GraphedStep:
    """Records a step once for each key, and replays it from then on.

    What is passed for one key has to stay at its address, for a recorded step reads and writes the same memory every
    time. All graphs share one pool: they never run at the same time.
    """

    def __init__(self) -> None:
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        return device.type == "cuda"

    def __call__(self, key: Hashable, changed: Sequence[Tensor], step: Callable[..., None], *arguments) -> None:
        """`changed` are the tensors that a step moves on: recording puts them back, for it runs the step first."""
        if key not in self.graphs:
            before = [tensor.clone() for tensor in changed]
            self.graphs[key] = self._record(step, arguments)
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        self.graphs[key].replay()

    def _record(self, step: Callable[..., None], arguments: tuple) -> torch.cuda.CUDAGraph:
        # What compiles, tunes or allocates when it is first run must do so outside of the graph.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            step(*arguments)
        return graph
