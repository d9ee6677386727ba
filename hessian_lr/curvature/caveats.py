"""What of a model itself limits what its curvature says."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .modes import base_model


def narrow_types(model: nn.Module) -> list[torch.dtype]:
    """The floating-point types narrower than float32 that parameters have."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return sorted((kind for kind in types if torch.finfo(kind).bits < 32), key=str)


def model_notes(model: nn.Module) -> list[str]:
    """What a reader should know of the model that was measured."""
    notes = []
    if narrow := narrow_types(model):
        names = " and ".join(str(kind).removeprefix("torch.") for kind in narrow)
        notes.append(
            f"some weights are {names}, whose rounding no error given here contains: where a percent or two "
            "matters, load the model in float32"
        )
    if any(map(_holds_its_norm, model.modules())):
        notes.append(
            "PEFT's DoRA holds the weights' norm constant in its derivative: this is neither quite the "
            "loss's curvature nor that of what training follows (dora-exact differentiates the norm)"
        )
    if getattr(getattr(base_model(model), "config", None), "output_router_logits", False):
        notes.append(
            "the router's own loss (output_router_logits), which training adds, is not in what was measured"
        )
    return notes


def _holds_its_norm(module: Any) -> bool:
    """Whether it is a layer with a DoRA of PEFT's own that is active and trained."""
    magnitudes = getattr(module, "lora_magnitude_vector", None) or {}
    active = [magnitudes[name] for name in module.active_adapters if name in magnitudes] if magnitudes else []
    return any(
        type(one).__module__.startswith("peft.") and any(p.requires_grad for p in one.parameters())
        for one in active
    )
