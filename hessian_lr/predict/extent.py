"""How large a model and its adapter are: laws have no term of it, but were tried on some sizes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

#: The names of what ``extent`` tells, which are those of ``Quantities``.
EXTENT = ("model_size", "adapter_rank", "adapter_scaling")
# PEFT's types whose rank is that of the settings that were swept, and those whose scaling is W + s·B·A's.
_RANKED, _SCALED = ("LORA", "GRALORA", "RANDLORA"), ("LORA",)
# Besides what a type's prefix tells: copies of the model's own, tokens before the text, AdaLoRA's counts.
_NOT_THE_MODELS = ("modules_to_save.", "prompt_encoder.", "ranknum.")


def extent(model: nn.Module) -> dict[str, Any]:
    """The number of the model's own parameters, and the largest rank and scaling s of what is trained.

    The last two are None where the adapter has none that compares with LoRA's. Of a weight that is packed
    into four bits its own number counts, not that of the bytes.
    """
    kinds = {name: str(config.peft_type.value) for name, config in getattr(model, "peft_config", {}).items()}
    layers = list(_layers(model, kinds))
    ranks = [int(layer.r[name]) for layer, name, kind in layers if kind in _RANKED]
    scalings = [float(layer.scaling[name]) for layer, name, kind in layers if kind in _SCALED]
    return {
        "model_size": _size(model, kinds),
        "adapter_rank": max(ranks, default=None),
        "adapter_scaling": max((one for one in scalings if one > 0), default=None),
    }


def _size(model: nn.Module, kinds: dict[str, str]) -> int:
    prefixes = {str(kind.value): prefix for kind, prefix in PEFT_TYPE_TO_PREFIX_MAPPING.items()}
    foreign = [*_NOT_THE_MODELS, *(prefixes[kind] for kind in kinds.values() if kind in prefixes)]
    own = (one for name, one in model.named_parameters() if not any(part in name for part in foreign))
    return sum(math.prod(one.shape if (packed := _packed(one)) is None else packed.shape) for one in own)


def _packed(parameter: nn.Parameter) -> Any:
    """What bitsandbytes knows of a weight in four bits; None of one that is not packed, or not yet."""
    return getattr(parameter, "quant_state", None)


def _layers(model: nn.Module, kinds: dict[str, str]) -> Iterator[tuple[Any, str, str]]:
    """Each adapted layer with the name and the kind of an adapter that is trained there."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name, kind in kinds.items():
                own = (p for path, p in module.named_parameters() if name in path.split("."))
                if kind in _RANKED and name in getattr(module, "r", {}) and any(p.requires_grad for p in own):
                    yield module, name, kind
