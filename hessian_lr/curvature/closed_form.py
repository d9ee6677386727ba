"""What is known of λ without an eigensolver while B = 0.

With W_eff = W + s·B·A and B = 0 the Hessian has no A–A part, its A–B part couples only the A and B
of one module, through s·⟨G, δB·δA⟩ with G = ∂L/∂W_eff, and its B–B part H_BB is ordinary
curvature. Hence, with σ = s·maxᵢ σ₁(Gᵢ) and μ = λ_max(H_BB) ≥ 0,

    max(μ, σ + ½·y·H_BB·y)  ≤  λ  ≤  ½·(μ + √(μ² + 4σ²)),

y the B-side of the top singular direction. Plain LoRA's λ at initialization is thus mostly the
spectral norm of one module's gradient, with −λ at the other end of the spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from ..errors import RequestError
from ..spectrum import lanczos
from .loss import Batch, compute_in, count_labels, quiet_model, require_finite, summed_loss, to_device
from .operator import HessianOperator, flatten


@dataclass(frozen=True)
class Bracket:
    """Two ends between which λ lies while B = 0.

    Attributes:
        lower, upper: The ends. ``upper`` uses the Ritz value of μ plus its residual.
        sigma: σ = s·maxᵢ σ₁(Gᵢ).
        mu: μ, the largest eigenvalue of the B–B block.
        module: The module where σ is attained.
    """

    lower: float
    upper: float
    sigma: float
    mu: float
    module: str


def gradient_norms(
    model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """σ₁(Gᵢ), the spectral norm of the loss's gradient over each adapted weight, by module name.

    At initialization the adapted model computes what the base model does, so Gᵢ is the same for
    every method. Costs one gradient over the adapted weights (1½ gradients of the adapter).

    Raises:
        RequestError: no adapted module, or no labelled token.
    """
    layers = adapted_layers(model)
    gradients = weight_gradients(model, _weights(layers), batches, dtype)
    return {name: _top_singular(matrix)[0] for name, matrix in gradients.items()}


def lora_bracket(
    model: nn.Module, batches: Sequence[Batch], *, rtol: float = 0.01, max_products: int = 60
) -> Bracket:
    """The bracket of λ for a LoRA adapter whose B is zero.

    Args:
        model: A PEFT model of plain LoRA or rsLoRA at initialization.
        batches: The curvature sample.
        rtol, max_products: For the Lanczos run on the B–B block.

    Raises:
        RequestError: some B is not zero, or the adapter is not LoRA.
    """
    layers = adapted_layers(model)
    for name, layer in layers.items():
        plain = isinstance(layer, LoraLayer) and layer.lora_B and not layer.lora_magnitude_vector
        if not plain:
            raise RequestError(f"the closed form needs plain LoRA layers; {name} is of another kind")
        if any(bool(b.weight.any()) for b in layer.lora_B.values()):
            raise RequestError(f"the closed form holds only while B = 0; {name} has trained or initialized B")
    parameters = {
        id(p): position for position, p in enumerate(p for p in model.parameters() if p.requires_grad)
    }

    top, where, directions = -1.0, "", (np.empty(0), np.empty(0))
    for name, gradient in weight_gradients(model, _weights(layers), batches, torch.float32).items():
        norm, left, right = _top_singular(gradient)
        norm *= _scaling(layers[name])
        if norm > top:
            # GPT-2's Conv1D keeps its weight as (in, out): its left singular vector is A's.
            transposed = getattr(layers[name], "fan_in_fan_out", False)
            top, where, directions = norm, name, (right, left) if transposed else (left, right)

    operator = HessianOperator(model, batches, memory_budget=0)
    probe = [torch.zeros_like(p) for p in operator.parameters]
    layer = layers[where]
    adapter = layer.active_adapters[0]
    a_weight, b_weight = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    # The coupling's top direction is r-fold: any unit vector of R^r serves, the first is as good.
    probe[parameters[id(b_weight)]][:, 0] = torch.from_numpy(directions[0])
    probe[parameters[id(a_weight)]][0, :] = torch.from_numpy(directions[1])
    vector = flatten(probe) / math.sqrt(2)
    quotient = abs(float(operator.matvec(vector).double() @ vector.double()))

    with _only_b(layers):
        block = HessianOperator(model, batches)
        mu = lanczos(block.matvec, block.size, rtol=rtol, max_products=max_products, device=block.device)
    mu_high = max(0.0, mu.value + mu.residual)
    return Bracket(
        lower=max(mu.value, quotient),
        upper=0.5 * (mu_high + math.sqrt(mu_high**2 + 4 * top**2)),
        sigma=top,
        mu=mu.value,
        module=where,
    )


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The adapter's layers (``BaseTunerLayer``) that stand on a weight matrix, by module name.

    Raises:
        RequestError: there is none.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and getattr(module.get_base_layer(), "weight", None) is not None
    }
    if not layers:
        raise RequestError("the model has no adapted linear module: wrap it with a PEFT adapter first")
    return layers


def weight_gradients(
    model: nn.Module, named: Mapping[str, Tensor], batches: Sequence[Batch], dtype: torch.dtype
) -> dict[str, Tensor]:
    """∂L/∂W of each of the model's weights in ``named``, shaped as it is, in the type it has.

    The model, whose weights may be frozen, is left as it was found.

    Raises:
        RequestError: no token is labelled.
        NonFiniteError: the loss is not finite.
    """
    weights = list(named.values())
    frozen = [w.requires_grad for w in weights]
    total = sum(count_labels(batch) for batch in batches)
    if not total:
        raise RequestError("no token of these batches is labelled (every label is -100)")
    sums: list[Tensor] | None = None
    device = weights[0].device
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with quiet_model(model), torch.enable_grad(), compute_in(device, dtype):
            for batch in batches:
                if count_labels(batch):
                    loss = summed_loss(model, to_device(batch, device)) / total
                    require_finite(loss, "the loss")
                    gradients = torch.autograd.grad(loss, weights)
                    sums = (
                        list(gradients)
                        if sums is None
                        else [a + b for a, b in zip(sums, gradients, strict=True)]
                    )
    finally:
        for weight, before in zip(weights, frozen, strict=True):
            weight.requires_grad_(before)
    assert sums is not None
    return dict(zip(named, sums, strict=True))


def _weights(layers: dict[str, Any]) -> dict[str, Tensor]:
    return {name: layer.get_base_layer().weight for name, layer in layers.items()}


def _top_singular(matrix: Tensor) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    dense = matrix.detach().double().cpu().numpy()
    if not dense.any():
        return 0.0, np.zeros(dense.shape[0]), np.zeros(dense.shape[1])
    if min(dense.shape) < 8:
        u, s, vt = np.linalg.svd(dense)
        return float(s[0]), u[:, 0], vt[0]
    u, s, vt = svds(dense, k=1, random_state=0, tol=1e-8)
    return float(s[0]), u[:, 0], vt[0]


def _scaling(layer: Any) -> float:
    return float(layer.scaling[layer.active_adapters[0]])


@contextmanager
def _only_b(layers: dict[str, Any]) -> Iterator[None]:
    weights = [a.weight for layer in layers.values() for a in layer.lora_A.values()]
    before = [w.requires_grad for w in weights]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
