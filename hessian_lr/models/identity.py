"""What tells two models apart: everything in their files that decides the loss."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

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


def glance(model: torch.nn.Module) -> str:
    """What ``fingerprint`` reads, in a fraction of its time, for processes that should have one model.

    Of a frozen weight the sum of its bits, where it lies: one pass over memory, less than a forward pass, and
    blind only to what moves about within a weight. Of what is trained, offloaded or in pieces on the
    processes the shape alone.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    told: list[Any] = [_configuration(model), scalings(model), sorted(trained)]
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            unread = name in trained or value.is_meta or isinstance(value, DTensor)
            told.append((name, tuple(value.shape), str(value.dtype), None if unread else _bits(value)))
    return json.dumps(told, sort_keys=True, default=str)


def scalings(model: torch.nn.Module) -> dict[str, float]:
    """What each adapter is multiplied by in each layer, which follows from no weight."""
    return {
        f"{name}.{adapter}": value
        for name, module in model.named_modules()
        if isinstance(given := getattr(module, "scaling", None), Mapping)
        for adapter, value in given.items()
    }


def _bits(tensor: torch.Tensor) -> int:
    """The sum of all bits in words of eight bytes: exact, so the same in any order and on any device."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()
    end = flat.numel() // 8 * 8
    return int(flat[:end].view(torch.int64).sum() + flat[end:].sum())


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
