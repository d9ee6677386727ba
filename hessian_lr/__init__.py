"""Predict the learning rate of a LoRA fine-tuning run from the curvature of its loss."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import HessianLRError, NonFiniteError, RequestError
    from .measure import Curvature, SharpnessTracker, module_sharpness, sharpness
    from .predict import Prediction, predict_learning_rate, refine_learning_rate
    from .setting import Setting

__version__ = "0.1.0"
__all__ = [
    "Curvature",
    "HessianLRError",
    "NonFiniteError",
    "Prediction",
    "RequestError",
    "Setting",
    "SharpnessTracker",
    "__version__",
    "module_sharpness",
    "predict_learning_rate",
    "refine_learning_rate",
    "sharpness",
]

# Imported on first use: torch and transformers take seconds, and `hessian-lr --help` needs neither.
_HOMES = {
    "Curvature": "measure",
    "HessianLRError": "errors",
    "NonFiniteError": "errors",
    "Prediction": "predict",
    "RequestError": "errors",
    "Setting": "setting",
    "SharpnessTracker": "measure",
    "module_sharpness": "measure",
    "predict_learning_rate": "predict",
    "refine_learning_rate": "predict",
    "sharpness": "measure",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "integrations"})


def __getattr__(name: str) -> Any:
    if name == "integrations":
        return importlib.import_module(".integrations", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
