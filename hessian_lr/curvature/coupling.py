"""What ties A to B while B = 0: the gradient G over each adapted weight, kept in factors.

G = ∂L/∂W_eff = Σ y·xᵀ over tokens, x a module's input and y the loss's gradient at its output. Both
pass by in any gradient of the adapter, so that G's products with thin matrices cost next to
nothing, and G itself, for all modules together as large as the model, is never formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..distributed import team
from ..precision import working_type
from ..spectrum import lanczos
from .vectors import flatten, unflatten

# Relative error of σ₁², so half of it for σ₁.
_RTOL = 1e-4
_MAX_PRODUCTS = 300


@dataclass
class _Module:
    """A LoRA layer's weights and scaling, and of each microbatch x (tokens, d_in) and y (tokens, d_out)."""

    name: str
    a: Tensor
    b: Tensor
    scaling: float
    factors: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def transposed_product(self, left: Tensor) -> Tensor:
        """leftᵀ·G, shape (k, d_in), for ``left`` of shape (d_out, k)."""
        total = left.new_zeros(left.shape[1], self.a.shape[1])
        for x, y in self.factors:
            total += (y.to(left.dtype) @ left).T @ x.to(left.dtype)
        return total

    def product(self, right: Tensor) -> Tensor:
        """G·rightᵀ, shape (d_out, k), for ``right`` of shape (k, d_in)."""
        total = right.new_zeros(self.b.shape[0], right.shape[0])
        for x, y in self.factors:
            total += y.to(right.dtype).T @ (x.to(right.dtype) @ right.T)
        return total


@dataclass(frozen=True)
class TopCoupling:
    """The largest singular value of C.

    Attributes:
        sigma: σ = max over modules of s·σ₁(G).
        module: The module where it is attained.
        gradient_norm: max over modules of σ₁(G).
        direction: A unit vector over all B with ‖C·direction‖ = σ.
    """

    sigma: float
    module: str
    gradient_norm: float
    direction: Tensor


class Coupling:
    """C, the A–B part of the Hessian at B = 0: block-diagonal over modules, δB ↦ s·δBᵀ·G.

    A vector over all B (or all A) holds the modules' δB (δA), flattened, in the order given here.

    Args:
        layers: PEFT's LoRA layers by name.
    """

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = list(layers.values())
        self._modules: list[_Module] = []
        for name, layer in layers.items():
            adapter = layer.active_adapters[0]
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            self._modules.append(_Module(name, a.detach(), b.detach(), float(layer.scaling[adapter])))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Take in the factors of G from the gradients of the loss that are computed inside."""
        handles: list[Any] = []
        for layer, module in zip(self._layers, self._modules, strict=True):
            handles.append(layer.register_forward_hook(_recorder(module, handles)))
        try:
            yield
        finally:
            # Those on the outputs too: a product differentiates the same graph again.
            for handle in handles:
                handle.remove()

    def to_a(self, over_b: Tensor) -> Tensor:
        """C·v, over all A, for v over all B."""
        pieces = unflatten(over_b, [m.b for m in self._modules])
        products = self._transposed_products(pieces)
        return flatten([m.scaling * p for m, p in zip(self._modules, products, strict=True)])

    def to_b(self, over_a: Tensor) -> Tensor:
        """Cᵀ·v, over all B, for v over all A."""
        pieces = unflatten(over_a, [m.a for m in self._modules])
        products = self._products(pieces)
        return flatten([m.scaling * p for m, p in zip(self._modules, products, strict=True)])

    def _transposed_products(self, lefts: Sequence[Tensor]) -> list[Tensor]:
        """leftᵀ·G of each module; of several ranks each has the factors of its own tokens."""
        products = [m.transposed_product(left) for m, left in zip(self._modules, lefts, strict=True)]
        with team().summing(*products):
            return products

    def _products(self, rights: Sequence[Tensor]) -> list[Tensor]:
        """G·rightᵀ of each module, likewise."""
        products = [m.product(right) for m, right in zip(self._modules, rights, strict=True)]
        with team().summing(*products):
            return products

    def top(self) -> TopCoupling:
        """σ and where it is attained.

        C's singular values are each r-fold: δB = u·eᵀ serves with u the left singular vector of G
        and any unit e. The one taken here, e ∝ A·Gᵀ·u, is that of the gradient over B, s·G·Aᵀ,
        and is where curvature over B, if there is any along u, is likely to be.
        """
        scalings = [m.scaling for m in self._modules]
        sigma, columns = self._largest(scalings)
        # σ₁(G) has no sign, and a scaling of 0 hides it.
        one = abs(scalings[0]) if len({abs(s) for s in scalings}) == 1 else 0.0
        lengths = [float(u.norm()) for u in columns]
        directions = []
        for module, u, row in zip(self._modules, columns, self._transposed_products(columns), strict=True):
            e = row @ module.a.to(u.dtype).T
            directions.append(u @ e / e.norm().clamp_min(torch.finfo(e.dtype).tiny))
        direction = flatten(directions)
        return TopCoupling(
            sigma=sigma,
            module=self._modules[lengths.index(max(lengths))].name,
            gradient_norm=sigma / one if one else self._largest([1.0] * len(scalings))[0],
            direction=direction / direction.norm(),
        )

    def _largest(self, scalings: list[float]) -> tuple[float, list[Tensor]]:
        """max s·σ₁(G), and the singular vector as one column (d_out, 1) for each module.

        One Lanczos run on the block-diagonal s²·G·Gᵀ of all modules, r = 1: it finds the module too.
        """
        like = [m.b[:, :1] for m in self._modules]

        def square(vector: Tensor) -> Tensor:
            pieces = unflatten(vector, like)
            products = self._products(self._transposed_products(pieces))
            return flatten([s * s * p for s, p in zip(scalings, products, strict=True)])

        found = lanczos(
            square,
            sum(u.shape[0] for u in like),
            rtol=_RTOL,
            max_products=_MAX_PRODUCTS,
            device=like[0].device,
            dtype=working_type(like[0]),
        )
        return math.sqrt(max(found.value, 0.0)), unflatten(found.vector, like)


def _recorder(module: _Module, handles: list[Any]) -> Callable[[Any, tuple[Any, ...], Any], None]:
    def after_forward(_layer: Any, arguments: tuple[Any, ...], output: Tensor) -> None:
        x = arguments[0].detach().flatten(0, -2)
        if output.requires_grad:
            handles.append(
                output.register_hook(lambda y: module.factors.append((x, y.detach().flatten(0, -2))))
            )

    return after_forward
