"""LoFT: plain LoRA whose optimizer follows AdamW of the whole weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from ..devices import resolve_device
from ..errors import RequestError
from ..setting import Setting
from .builtin import plain_lora
from .loft_adamw import LoftAdamW
from .method import Method, Target

_FLOAT32 = 4


def _optimizer(model: PeftModel, lr: float, **options: Any) -> LoftAdamW:
    """LoFT-AdamW over every adapter of a plain LoRA model."""
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    adapters = [
        (layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"])
        for layer in layers
    ]
    return LoftAdamW(adapters, lr, **options)


def second_moments(rank: int, targets: Sequence[Target]) -> int:
    """Bytes of LoFT's second moments: an r × r matrix for each row of B and each column of A."""
    return _FLOAT32 * rank**2 * sum(target.in_features + target.out_features for target in targets)


def _refuse(setting: Setting, targets: tuple[Target, ...]) -> None:
    needed, device = second_moments(setting.rank, targets), resolve_device(setting.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    # λ_P is measured with as much again beside them.
    if 2 * needed > free:
        raise RequestError(
            f"loft keeps second moments of rank times the adapter's size: {needed / 1e9:.3g} GB at rank "
            f"{setting.rank}, as much again to measure λ_P, and {free / 1e9:.3g} GB are free on {device}; "
            "lower the rank, or adapt fewer modules"
        )


LOFT = Method(
    name="loft",
    summary="plain LoRA whose optimizer follows AdamW of the whole weight as rank allows",
    source="arXiv 2505.21289",
    zero_b=True,
    build=plain_lora,
    refuse=_refuse,
    optimizer=_optimizer,
    clips=True,
)
