"""The loss of an adapter, and the operators made of its derivatives."""

from ..batches import Batch, count_labels
from .adam import PreconditionedOperator
from .closed_form import ClosedForm, closed_form
from .gauss_newton import GaussNewtonOperator
from .loss import mean_loss
from .loss_operator import Cost, LossOperator
from .operator import HessianOperator

__all__ = [
    "Batch",
    "ClosedForm",
    "Cost",
    "GaussNewtonOperator",
    "HessianOperator",
    "LossOperator",
    "PreconditionedOperator",
    "closed_form",
    "count_labels",
    "mean_loss",
]
