"""A frozen linear layer and an activation whose first and second derivatives cost what they must.

Automatic differentiation of a linear layer under autocast casts its weight to bfloat16 for every
microbatch and keeps each copy in the graph; here one copy serves all. Of an activation it keeps
inputs, from which each product computes the derivatives again; here the derivatives themselves are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..precision import wide


def frozen_linear(inputs: Tensor, weight: Tensor | Callable[[], Tensor], bias: Tensor | None) -> Tensor:
    """inputs·Wᵀ + b for a W and a b that are not differentiated.

    Args:
        inputs: (…, in).
        weight: W, (out, in), in the type of ``inputs``; or what makes it, each time it is needed.
        bias: b, (out,), or None.
    """
    outputs: Tensor = _FrozenLinear.apply(inputs, weight, False)
    return outputs if bias is None else outputs + bias


class _FrozenLinear(torch.autograd.Function):
    """x ↦ x·Wᵀ, or x·W if ``transposed``; each is the other's derivative."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor | Callable[[], Tensor], transposed: bool) -> Tensor:
        # Not saved for backward: a constant of the model, shared by all graphs.
        ctx.weight, ctx.transposed = weight, transposed
        matrix = weight if isinstance(weight, Tensor) else weight()
        return torch.nn.functional.linear(inputs, matrix.t() if transposed else matrix)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        product: Tensor = _FrozenLinear.apply(gradient, ctx.weight, not ctx.transposed)
        return product, None, None


Derivatives = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def activation(inputs: Tensor, derivatives: Derivatives) -> Tensor:
    """f(inputs) elementwise, differentiable twice.

    Args:
        inputs: Any shape.
        derivatives: x ↦ (f(x), f'(x), f''(x)), computed in float32 or wider.
    """
    outputs: Tensor = _Activation.apply(inputs, derivatives)
    return outputs


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, derivatives: Derivatives) -> Tensor:
        value, first, second = derivatives(wide(inputs))
        ctx.save_for_backward(inputs, first.to(inputs.dtype), second.to(inputs.dtype))
        return value.to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        inputs, first, second = ctx.saved_tensors
        product: Tensor = _Slope.apply(inputs, gradient, first, second)
        return product, None


class _Slope(torch.autograd.Function):
    """f'(x)·dy as a function of x and dy."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, gradient * second)
        return gradient * first

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor, Tensor, None, None]:
        first, bend = ctx.saved_tensors
        return along * bend, along * first, None, None


def silu(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x·σ(x) with its first two derivatives; σ the logistic function."""
    sigmoid = torch.sigmoid(x)
    slope = sigmoid * (1 - sigmoid)
    return x * sigmoid, sigmoid + x * slope, slope * (2 + x * (1 - 2 * sigmoid))


def gelu(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x·Φ(x) with its first two derivatives; Φ the normal distribution function."""
    normal = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * normal, normal + x * density, density * (2 - x * x)


def gelu_tanh(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """½·x·(1 + tanh(u)), u = √(2/π)·(x + 0.044715·x³), with its first two derivatives."""
    c, a = math.sqrt(2 / math.pi), 0.044715
    u1, u2 = c * (1 + 3 * a * x * x), 6 * c * a * x
    tanh = torch.tanh(c * (x + a * x**3))
    slope = 1 - tanh * tanh
    first = 0.5 * (1 + tanh) + 0.5 * x * slope * u1
    second = slope * u1 + 0.5 * x * (slope * u2 - 2 * tanh * slope * u1 * u1)
    return 0.5 * x * (1 + tanh), first, second
