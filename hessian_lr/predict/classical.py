"""What λ says of plain gradient descent: the classical bound, and no more than that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..batches import Batch
from ..checkpoints import Checkpoints
from ..distributed import FAILURES, failed
from ..exhausted import memory_errors
from ..measure import Curvature
from ..measure.how import How, Report, shown
from .law import NO_LAW
from .prediction import Prediction
from .start import by_lanczos

# The predictor of a prediction that names no learning rate.
NONE = "none"


def stability_bound(curvature: Curvature) -> float | None:
    """2/λ: gradient descent on a quadratic is stable iff its learning rate stays below; None unless λ > 0."""
    value = curvature.lambda_max
    return 2 / value if value is not None and value > 0 else None


def unpredicted(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    calibration: str,
    dtype: torch.dtype,
    seed: int,
    report: Report | None,
    checkpoints: Checkpoints | None,
) -> Prediction:
    """λ at initialization with the bound it sets, as a prediction that names no learning rate.

    Raises:
        RequestError: nothing is trainable or labelled.
    """
    try:
        with memory_errors():
            how = How(dtype, None, seed, shown(report, "Lanczos"), checkpoints)
            found = by_lanczos(model, batches, how)
    except FAILURES as error:
        return Prediction.failed(NONE, calibration, failed(error))
    bound = stability_bound(found)
    told = "λ is not positive, so that it sets no bound" if bound is None else f"2/λ is {bound:.3g}"
    return Prediction.measured(NONE, found, calibration, (*found.notes, f"no prediction: {NO_LAW}; {told}"))
