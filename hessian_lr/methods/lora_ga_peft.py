"""LoRA-GA as PEFT has it, which is another start than the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from peft.tuners.lora import LoraGAConfig
from transformers import PreTrainedModel

from ..batches import Batch
from ..setting import Setting
from .builtin import plain_lora
from .lora_ga import GAMMA, ROWS, mean_gradients, refuse_more_than_half
from .method import Method, Target


def _lora_ga_peft(
    model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...], batches: Sequence[Batch]
) -> PeftModel:
    """A = V[:, :r]ᵀ and B = c·U[:, r:2r]·S[r:2r] of the gradient G = U·S·Vᵀ, and W keeps W − s·B·A.

    PEFT's ``init_lora_weights="lora_ga"`` (0.21) with its default directions and scale: c = d^¼ / √16 as
    in ``lora-ga``, but A is not scaled, and B by the gradient's singular values too, so that B is small
    and its size follows that of the gradient. d is the first dimension of the stored weight: d_out, but
    d_in for GPT-2's Conv1D.
    """
    for name, gradient in mean_gradients(model, targets, batches).items():
        # Where PEFT's own preprocessing leaves it, which would train with dropout and weigh each batch
        # alike; PEFT deletes it after use.
        model.get_submodule(name)._peft_loraga_grad = gradient
    return plain_lora(
        model,
        setting,
        targets,
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=GAMMA),
    )


LORA_GA_PEFT = Method(
    name="lora-ga-peft",
    summary="PEFT's variant of lora-ga: B scaled by the gradient's singular values, A not at all",
    source="arXiv 2407.05000",
    zero_b=False,
    build=_lora_ga_peft,
    refuse=refuse_more_than_half,
    rows=ROWS,
)
