"""Layers whose weights bitsandbytes packed into four bits (QLoRA), made fit to be differentiated twice.

Their own derivative keeps each weight's float copy in the graph of a second one: for all layers together that
is the model as it was before it was packed. Here a weight is unpacked whenever it is needed, and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .layers import frozen_linear


def is_four_bit(module: nn.Module) -> bool:
    """Whether a module is a linear layer of bitsandbytes' with packed weights."""
    packed = getattr(getattr(module, "weight", None), "quant_state", None)
    return packed is not None and type(module).__module__.startswith("bitsandbytes.")


@contextmanager
def four_bit_layers(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """For the time of the context, the model's four-bit layers compute in ``dtype`` and keep no weight."""
    replaced: list[tuple[nn.Module, str, Any]] = []
    for module in filter(is_four_bit, model.modules()):
        # accelerate's hooks call what they found by that name.
        name = "_old_forward" if "_old_forward" in vars(module) else "forward"
        replaced.append((module, name, vars(module).get(name)))
        setattr(module, name, partial(_forward, module, dtype))
    try:
        yield
    finally:
        for module, name, before in replaced:
            if before is None:
                delattr(module, name)
            else:
                setattr(module, name, before)


def _forward(module: Any, dtype: torch.dtype, inputs: Tensor) -> Tensor:
    bias = None if module.bias is None else module.bias.to(dtype)
    return frozen_linear(inputs.to(dtype), partial(_unpacked, module, dtype), bias).to(inputs.dtype)


def _unpacked(module: Any, dtype: torch.dtype) -> Tensor:
    """W, (out, in)."""
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(module.weight.data, module.weight.quant_state)
    return weight.to(dtype)
