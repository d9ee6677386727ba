"""What of a model itself limits what its curvature says."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .modes import base_model

_MIXES = (
    "PEFT's Lily takes a mean over all tokens of a batch, padding and later ones too: its loss, and so this, "
    "depends on which rows stand together, here and in training"
)
_WRONG = (
    "PEFT's C3A gives the layers below it a wrong derivative: this is of the gradient that trains, not the "
    "loss's curvature"
)
_PROJECTED = (
    "PEFT's OSF projects the gradients of its factors: this is the curvature along what training can move "
    "in, and the loss's own may be larger"
)


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
    layers = _trained_layers(model)
    if merged := sum(layer.merged for layer in layers):
        notes.append(
            f"{merged} of {len(layers)} adapted modules are merged into their weights, and the loss does not "
            "depend on their parameters, which are counted all the same: unmerge_adapter() first"
        )
    if mixes_rows(model):
        notes.append(_MIXES)
    if any(_is_of(layer, "c3a") for layer in layers):
        notes.append(_WRONG)
    if any(_is_of(layer, "osf") for layer in layers):
        notes.append(_PROJECTED)
    notes += [f"{loss}, which training adds, is not in what was measured" for loss in added_losses(model)]
    return notes


def added_losses(model: nn.Module) -> list[str]:
    """What a model given labels adds by itself to the cross-entropy that is measured."""
    added = []
    if getattr(getattr(base_model(model), "config", None), "output_router_logits", False):
        added.append("the router's own loss (output_router_logits)")
    if _adds_penalty(model):
        added.append("AdaLoRA's penalty on factors that are not orthogonal (orth_reg_weight)")
    return added


def mixes_rows(model: nn.Module) -> bool:
    """Whether the adapter has the rows of a batch, and its tokens, depend on each other."""
    return any(_is_of(layer, "lily") for layer in _trained_layers(model))


def _trained_layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and any(p.requires_grad for p in module.parameters())
    ]


def _adds_penalty(model: nn.Module) -> bool:
    """Whether AdaLoRA's forward pass is part of the model's, as it is where the adapter has a task type."""
    modules = list(model.modules())
    # There is no such name where all adapters were loaded for inference.
    configs: list[Any] = [
        one.peft_config[one.trainable_adapter_name]
        for one in modules
        if isinstance(one, AdaLoraModel) and hasattr(one, "trainable_adapter_name")
    ]
    passes_by = any(type(one) is PeftModel for one in modules)
    return not passes_by and any(config.orth_reg_weight > 0 for config in configs)


def _is_of(layer: BaseTunerLayer, method: str) -> bool:
    return type(layer).__module__.startswith(f"peft.tuners.{method}.")


def _holds_its_norm(module: Any) -> bool:
    """Whether it is a layer with a DoRA of PEFT's own that is active and trained."""
    magnitudes = getattr(module, "lora_magnitude_vector", None) or {}
    active = [magnitudes[name] for name in module.active_adapters if name in magnitudes] if magnitudes else []
    return any(
        type(one).__module__.startswith("peft.") and any(p.requires_grad for p in one.parameters())
        for one in active
    )
