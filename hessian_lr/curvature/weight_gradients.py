"""The loss's gradient over frozen weights, and the layers that adapt them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..batches import Batch, count_labels, require_labels, to_device
from ..errors import RequestError
from .loss import require_finite, summed_loss
from .modes import compute_in, quiet_model


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


def zero_b(model: nn.Module) -> bool:
    """Whether the active adapter adds products B·A to weights, and every B is 0, as LoRA starts."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    factors = [
        layer.lora_B[name].weight
        for layer in layers
        if isinstance(getattr(layer, "lora_B", None), nn.ModuleDict)
        for name in layer.active_adapters
        if name in layer.lora_B
    ]
    return bool(factors) and not any(bool(b.any()) for b in factors)


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
    total = require_labels(batches)
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
                    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
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
