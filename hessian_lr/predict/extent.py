"""How large a model and its adapter are: laws have no term of it, but were tried on some sizes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from peft.tuners.lora.layer import LoraLayer
from torch import nn

#: The names of what ``extent`` tells, which are those of ``Quantities``.
EXTENT = ("model_size", "adapter_rank", "adapter_scaling")


def extent(model: nn.Module) -> dict[str, Any]:
    """The number of the model's own parameters, and the largest rank and scaling s of W + s·B·A.

    The last two are None where there is no LoRA. An adapter leaves the model's own frozen; of a weight that
    is packed into four bits its own number counts, not that of the bytes.
    """
    layers = list(_lora(model))
    parameters = list(model.parameters())
    own = [one for one in parameters if not one.requires_grad] or parameters
    return {
        "model_size": sum(
            math.prod(one.quant_state.shape) if hasattr(one, "quant_state") else one.numel() for one in own
        ),
        "adapter_rank": max((rank for rank, _ in layers), default=None),
        "adapter_scaling": max((scaling for _, scaling in layers), default=None),
    }


def _lora(model: nn.Module) -> Iterator[tuple[int, float]]:
    """Rank and scaling of each active adapter of LoRA's own kind."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.active_adapters:
                if name in module.scaling and module.scaling[name] > 0:
                    yield int(module.r[name]), float(module.scaling[name])
