"""Snake with a hand-written gradient: it saves its input alone and, compiled, makes one pass over memory."""

import torch
from torch import Tensor

from higgs.codec import acoustic


def _forward(x: Tensor, alpha: Tensor) -> Tensor:
    x32 = x.float()
    return (x32 + torch.sin(alpha * x32).square() / (alpha + 1e-9)).to(x.dtype)


def _backward(x: Tensor, alpha: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x32, grad = x.float(), grad.float()
    double, sine = torch.sin(2 * alpha * x32), torch.sin(alpha * x32)
    grad_alpha = (grad * (x32 * double / alpha - sine * sine / (alpha * alpha))).sum((0, 2), True)
    return (grad * (1 + double)).to(x.dtype), grad_alpha


class _Snake(torch.autograd.Function):
    forward_kernel, backward_kernel = staticmethod(_forward), staticmethod(_backward)

    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return _Snake.forward_kernel(x, alpha)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _Snake.backward_kernel(*ctx.saved_tensors, grad)


def use_trainable_snake(compiled: bool = True) -> None:
    """Replaces the codec's Snake for this process; `compiled` needs a C++ compiler."""
    if compiled:
        # One kernel for all widths: a specialisation for each would exceed the recompile limit.
        torch._dynamo.config.force_parameter_static_shapes = False
        torch._dynamo.config.recompile_limit = 32
        _Snake.forward_kernel = staticmethod(torch.compile(_forward, dynamic=True))
        _Snake.backward_kernel = staticmethod(torch.compile(_backward, dynamic=True))
    acoustic.snake = _Snake.apply
