"""Functions that can be differentiated only once, as compiled and fused kernels can."""

import torch


class Square(torch.autograd.Function):
    """x + x², with a backward outside the graph: torch takes its derivative for a constant, in silence."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return gradient * (1 + 2 * x)


class Once(Square):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (1 + 2 * x)
