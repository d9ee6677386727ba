"""LoRA+: plain LoRA whose B learns faster than its A."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer

from .builtin import plain_lora
from .method import Method

#: η_B / η_A; Axolotl's documentation recommends 2⁴.
RATIO = 16


def _optimizer(model: PeftModel, lr: float, **adam: Any) -> torch.optim.Optimizer:
    """AdamW with η_A = lr and η_B = 16·lr (arXiv 2402.12354), as PEFT groups the parameters."""
    # foreach=False as in the warm-up of every other method.
    return create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=RATIO, foreach=False, **adam
    )


LORA_PLUS = Method(
    name="lora+",
    summary="plain LoRA with a learning rate for B of 16 times A's, which is the one given",
    source="arXiv 2402.12354",
    zero_b=True,
    build=plain_lora,
    optimizer=_optimizer,
    fused=True,
)
