"""LoRA-GA: LoRA started along the singular directions of the weight's gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ..batches import Batch
from ..curvature.loss import require_finite
from ..curvature.modes import differentiable_attention
from ..curvature.weight_gradients import weight_gradients
from ..errors import RequestError
from ..setting import Setting
from .method import Method, Target
from .start import start_at

GAMMA = 16
#: Rows of training data whose gradient is taken.
ROWS = 32


def _lora_ga(
    model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...], batches: Sequence[Batch]
) -> PeftModel:
    """A = c·V[:, :r]ᵀ and B = c·U[:, r:2r] of the gradient G = U·S·Vᵀ, and W keeps W − s·B·A.

    c = d_out^¼ / √γ with γ = 16 (arXiv 2407.05000; "stable" scale and directions "ArB2r" in its authors'
    implementation, both the defaults there): A has orthogonal rows and B orthogonal columns, all of
    length c, whatever the size of G. PEFT's ``init_lora_weights="lora_ga"`` is another start (see
    ``lora_ga_peft``).

    As in that implementation, the decomposition is the randomized one with 4·r columns and 4 power
    iterations (all columns where 4·r exceeds the width of G); its random numbers follow the seed.

    Takes a gradient over the adapted weights, on ``ROWS`` samples in float32, and for a while the memory
    of three times these weights.
    """
    gradients = mean_gradients(model, targets, batches)

    def factors(target: Target, weight: Tensor) -> tuple[Tensor, Tensor]:
        stored = gradients.pop(target.name)
        gradient = stored.T if target.transposed else stored
        u, _, v = torch.svd_lowrank(gradient, q=min(4 * setting.rank, target.width), niter=4)
        scale = target.out_features**0.25 / math.sqrt(GAMMA)
        return scale * v[:, : setting.rank].T, scale * u[:, setting.rank : 2 * setting.rank]

    return start_at(model, setting, targets, factors)


def mean_gradients(
    model: PreTrainedModel, targets: tuple[Target, ...], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """∂L/∂W of every target in float32, shaped as the weight is stored; L the token-weighted mean loss.

    Raises:
        RequestError: no token is labelled.
        NonFiniteError: the loss or a gradient is not finite.
    """
    weights = {target.name: model.get_parameter(f"{target.name}.weight") for target in targets}
    # The fused kernels' backward adds up in no fixed order on a GPU; the start must not depend on it.
    with differentiable_attention(model):
        gradients = weight_gradients(model, weights, batches, torch.float32)
    for name, gradient in gradients.items():
        require_finite(gradient, f"the gradient of {name}")
    return {name: gradient.float() for name, gradient in gradients.items()}


def refuse_more_than_half(setting: Setting, targets: tuple[Target, ...]) -> None:
    """Refuse a rank of which a gradient does not have twice as many singular vectors."""
    narrowest = min(targets, key=lambda target: target.width)
    if 2 * setting.rank > narrowest.width:
        raise RequestError(
            f"{setting.method} takes 2·rank singular vectors of every gradient: rank {setting.rank} is too "
            f"large for {narrowest.name} ({narrowest.out_features} × {narrowest.in_features}), "
            f"where the largest possible rank is {narrowest.width // 2}"
        )


LORA_GA = Method(
    name="lora-ga",
    summary="LoRA started at singular vectors of W's gradient on 32 training samples",
    source="arXiv 2407.05000",
    zero_b=False,
    build=_lora_ga,
    refuse=refuse_more_than_half,
    rows=ROWS,
)
