"""How many parameters no step on a sample's rows moves: an embedding's, of tokens that are not in them."""

from __future__ import annotations

from collections.abc import Callable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..curvature.loss_operator import LossOperator
from ..curvature.vectors import displaced, flatten, views

# How far to look away from the weights, as a share of their length.
_AWAY = 1e-3


def unreached(model: nn.Module, direction: Tensor, make: Callable[[], LossOperator]) -> int:
    """The parameters of embeddings, or of adapters of embeddings, to which the sample gives no gradient.

    The gradient is taken a little away from the weights: at the start of a LoRA one factor has none, and
    moves later all the same. It costs nothing where no embedding is trained.

    Args:
        model: Whose parameters.
        direction: Which way to look, shape (n,): one in which every factor changes.
        make: Makes the operator of the sample, if there is any need.
    """
    if not (held := _of_embeddings(model)):
        return 0
    operator = make()
    parameters = operator.parameters
    size = float(flatten(parameters).norm()) or 1.0
    with displaced(parameters, direction / direction.norm(), _AWAY * size):
        gradient = operator.gradient()
    pieces = zip(views(gradient, parameters), parameters, strict=True)
    return sum(int((piece == 0).sum()) for piece, parameter in pieces if id(parameter) in held)


def _of_embeddings(model: nn.Module) -> set[int]:
    held = set()
    for module in model.modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, nn.Embedding):
            held |= {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    return held
