"""MiLoRA: LoRA on the part of the weight that matters least."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ..setting import Setting
from .method import Method, Target
from .start import start_at


def _milora(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """s·B·A is the part of W in its r smallest singular directions, and W keeps the rest.

    With W = U·S·Vᵀ: A = √(S/s)·Vᵀ and B = U·√(S/s) over the last r triplets (arXiv 2406.09044; the
    division by s makes s·B·A that part for any alpha). It needs the full decomposition, in float32:
    as slow as PiSSA's.
    """

    def factors(target: Target, weight: Tensor) -> tuple[Tensor, Tensor]:
        u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
        root = torch.sqrt(sigma[-setting.rank :] / setting.scaling)
        return root[:, None] * vt[-setting.rank :], u[:, -setting.rank :] * root

    return start_at(model, setting, targets, factors)


MILORA = Method(
    name="milora",
    summary="LoRA started at the minor singular vectors of W",
    source="arXiv 2406.09044",
    zero_b=False,
    build=_milora,
)
