"""What of a model itself limits what its curvature says."""

from __future__ import annotations

import torch
from torch import nn


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
    return notes
