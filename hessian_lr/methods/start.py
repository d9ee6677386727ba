"""Plain LoRA started at given factors, with their product taken out of the frozen weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ..setting import Setting
from .builtin import plain_lora
from .method import Target

#: ``factors(target, weight)``: A (r × d_in) and B (d_out × r) for a weight (d_out × d_in, float32).
Factors = Callable[[Target, Tensor], tuple[Tensor, Tensor]]


def start_at(
    model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...], factors: Factors
) -> PeftModel:
    """W ← W − s·B·A with s = alpha / r, so that the adapted model computes what the model did.

    To PEFT the adapter is plain LoRA: it merges as such. But a saved adapter holds A and B alone, and
    belongs to the changed weights: on the original ones it is off by s·B₀·A₀, its own start. An adapter
    for the original weights, of twice the rank, is what PEFT makes of the two::

        adapted.save_pretrained("start")  # before training
        ...
        adapted.save_pretrained("trained", path_initial_model_for_weight_conversion="start")

    Args:
        model: The model to adapt; it is changed. Its weights keep their type.
        setting: Gives rank and alpha.
        targets: The modules to adapt, in the order in which ``factors`` is asked.
        factors: Gives A and B of each target.
    """
    adapted = plain_lora(model, setting, targets)
    with torch.no_grad():
        for target in targets:
            layer: Any = adapted.get_base_model().get_submodule(target.name)
            stored = layer.get_base_layer().weight
            weight = stored.T if target.transposed else stored
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            for parameter, value in zip((a, b), factors(target, weight.float()), strict=True):
                parameter.copy_(value)
            weight.copy_(weight.float() - setting.scaling * (b @ a))
    return adapted
