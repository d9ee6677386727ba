"""The loss of an adapter, and the operators made of its derivatives."""

from .adam import PreconditionedOperator
from .closed_form import Bracket, gradient_norms, lora_bracket
from .loss import Batch, count_labels, mean_loss
from .operator import Cost, HessianOperator

__all__ = [
    "Batch",
    "Bracket",
    "Cost",
    "HessianOperator",
    "PreconditionedOperator",
    "count_labels",
    "gradient_norms",
    "lora_bracket",
    "mean_loss",
]
