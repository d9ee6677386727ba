"""What tells two models apart: everything in their files that decides the loss."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from .. import hub
from ..distributed import whole

# Where a model came from and how it writes texts, not what it computes from given tokens.
_NO_MATTER = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_NO_MATTER |= {"use_cache", "bos_token_id", "eos_token_id", "unk_token_id"}


def fingerprint(model: torch.nn.Module) -> str:
    """A short hash of every weight's name, shape and values, and of the configuration.

    All bytes count: a sample of them misses a few trained rows of an embedding. That takes about a second
    for every GB, less than reading them did. The configuration counts (the same weights under
    another rope, activation or ε are another model) but for what it shares with the architecture's
    defaults, so that an option that a later transformers adds does not make another model of it.
    """
    total = hashlib.sha256(json.dumps(_configuration(model), sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            total.update(raw(value))
    return total.hexdigest()[:16]


def raw(tensor: torch.Tensor) -> memoryview:
    """All of a tensor's bytes, wherever and in however many pieces it lies."""
    flat = whole(tensor.detach()).cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def _configuration(model: torch.nn.Module) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    defaults: dict[str, Any] = {}
    # Not every configuration can be made from nothing.
    with hub.silenced(), contextlib.suppress(Exception):
        defaults = type(config)().to_dict()
    return {"model_type": config.model_type, **_differing(config.to_dict(), defaults)}


def _differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (values.keys() | defaults.keys()) - _NO_MATTER:
        value, default = values.get(name), defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and value != default:
            found[str(name)] = _differing(value, default)
        elif value != default:
            found[str(name)] = value
    return found
