"""What PEFT itself adapts for the names of target modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from .method import Target


def adapted_by_peft(model: PreTrainedModel, wanted: str | list[str]) -> tuple[Target, ...]:
    """Ask PEFT on a copy without memory; the model stays as it is.

    Raises:
        Exception: whatever PEFT raises where it refuses.
    """
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
        for p in model.parameters()
    }
    config = LoraConfig(r=1, target_modules=wanted, task_type=TaskType.CAUSAL_LM)
    # What a copy finds under an object's id, it takes for the object's copy.
    with torch.device("meta"):
        adapted = get_peft_model(copy.deepcopy(model, empty), config)
    named: Any = adapted.get_base_model().named_modules()
    return tuple(_described(name, layer) for name, layer in named if isinstance(layer, LoraLayer))


def has_fused(module: nn.Module) -> bool:
    """Whether an adapter lies on a parameter rather than on a module."""
    return any(isinstance(layer, ParamWrapper) for layer in module.modules())


def _described(name: str, layer: Any) -> Target:
    fused = isinstance(layer, ParamWrapper)
    if fused:
        # Two parameters of one module get one adapter inside the other.
        name = f"{name.replace('.base_layer', '')}.{layer.parameter_name}"
    return Target(name, layer.in_features, layer.out_features, transposed=False, fused=fused)
