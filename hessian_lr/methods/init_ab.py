"""Init[AB]: LoRA with both factors random."""

from __future__ import annotations

import math

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ..setting import Setting
from .method import Method, Target
from .start import start_at


def _init_ab(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """A and B uniform between ±1/√d_in, as plain LoRA draws A, and W keeps W − s·B·A.

    arXiv 2505.23194, which finds that training goes as well from W + s·B·A, nothing taken out of W; here
    it is taken out, so that every method starts from what the model computes.
    """

    def factors(target: Target, weight: Tensor) -> tuple[Tensor, Tensor]:
        bound = 1 / math.sqrt(target.in_features)
        shapes = (setting.rank, target.in_features), (target.out_features, setting.rank)
        a, b = (torch.empty(shape, device=weight.device).uniform_(-bound, bound) for shape in shapes)
        return a, b

    return start_at(model, setting, targets, factors)


INIT_AB = Method(
    name="init-ab",
    summary="LoRA with A and B both random, their product taken out of W",
    source="arXiv 2505.23194",
    zero_b=False,
    build=_init_ab,
)
