"""A decode step as one CUDA graph, sampling included: one launch from the host instead of hundreds."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class GraphedStep:
    """Captures a step once for each key and replays it from then on.

    The tensors passed for one key must stay at their addresses. All graphs share one memory pool, since they never run
    at the same time.
    """

    def __init__(self) -> None:
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        return device.type == "cuda"

    def __call__(self, key: Hashable, changed: Sequence[Tensor], step: Callable[..., None], *arguments) -> None:
        """`changed` are the tensors that a step writes: they are restored after the warm-up that capturing needs."""
        if key not in self.graphs:
            before = [tensor.clone() for tensor in changed]
            self.graphs[key] = self._capture(step, arguments)
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        self.graphs[key].replay()

    def _capture(self, step: Callable[..., None], arguments: tuple) -> torch.cuda.CUDAGraph:
        # What compiles, tunes or allocates on its first run must do so outside of the graph.
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
