"""DoRA whose weight norm is differentiated: the gradient is that of the loss it computes."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.other import transpose
from torch import Tensor
from transformers import PreTrainedModel

from ..setting import Setting
from .builtin import plain_lora
from .method import Method, Target


class _ExactNorm(DoraLinearLayer):
    """PEFT's layer (0.21) with the same value, and ‖V‖ in the graph."""

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: Any,
        lora_B: Any,
        scaling: float,
        base_layer: Any,
        base_result: Tensor | None = None,
        adapter_name: str = "default",
    ) -> Tensor:
        """What DoRA adds to the base layer's output: (m/‖V‖ − 1)·W·x + m/‖V‖·s·B·A·x."""
        weight = transpose(base_layer.weight, self.fan_in_fan_out).to(x.dtype)
        moved = weight + scaling * (lora_B.weight @ lora_A.weight).to(x.dtype)
        scale = self.weight / torch.linalg.norm(moved, dim=1)
        if base_result is None:  # with dropout in training, which x has seen
            base_result = torch.nn.functional.linear(x, weight)
        elif base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        return (scale - 1) * base_result + scale * lora_B(lora_A(x)) * scaling


def _dora_exact(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """m·V/‖V‖ with V = W + s·B·A as in ``dora`` (arXiv 2402.09353, equation 5), ‖V‖ differentiated.

    PEFT, and the paper's section 4.3, hold ‖V‖ constant in the backward pass to save memory. Here it is
    not, so that the gradient and the Hessian are those of the loss. The values are those of ``dora``, and
    so is a saved adapter: PEFT loads it as a DoRA, and goes on training it with ‖V‖ held.
    """
    adapted = plain_lora(model, setting, targets, use_dora=True)
    for target in targets:
        layer: Any = adapted.get_base_model().get_submodule(target.name)
        theirs = layer.lora_magnitude_vector["default"]
        exact = _ExactNorm(theirs.fan_in_fan_out)
        exact.weight = theirs.weight
        layer.lora_magnitude_vector["default"] = exact
    return adapted


DORA_EXACT = Method(
    name="dora-exact",
    summary="DoRA with the norm of W's rows differentiated, which PEFT holds constant",
    source="arXiv 2402.09353",
    zero_b=True,
    build=_dora_exact,
)
