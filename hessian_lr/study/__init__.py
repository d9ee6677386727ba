"""What the commands do with settings, for Python: predict, prove it, sweep grids, read results back."""

from ..validated import Validated
from ..validated import read_validated as read
from .aligning import align, eigenvalue_figure, sweep_figure
from .predicting import predict, transfer
from .sweeping import plan, sweep
from .validating import validate

__all__ = [
    "Validated",
    "align",
    "eigenvalue_figure",
    "plan",
    "predict",
    "read",
    "sweep",
    "sweep_figure",
    "transfer",
    "validate",
]
