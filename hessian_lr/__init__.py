"""Predict the learning rate of a LoRA fine-tuning run from the curvature of its loss."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curvature.closed_form import ClosedForm, closed_form
    from .errors import HessianLRError, NonFiniteError, NotTwiceDifferentiable, RankError, RequestError
    from .measure import (
        AdamSharpness,
        Curvature,
        ModuleSharpness,
        ModuleSpectrum,
        SharpnessTracker,
        TopEigenvalues,
        TrackedSharpness,
        density,
        module_sharpness,
        sharpness,
        top_eigenvalues,
    )
    from .predict import (
        Calibration,
        Prediction,
        load_calibration,
        predict_learning_rate,
        refine_learning_rate,
    )
    from .setting import Setting
    from .spectrum import SpectralDensity

__version__ = "0.1.0"
__all__ = [
    "AdamSharpness",
    "Calibration",
    "ClosedForm",
    "Curvature",
    "HessianLRError",
    "ModuleSharpness",
    "ModuleSpectrum",
    "NonFiniteError",
    "NotTwiceDifferentiable",
    "Prediction",
    "RankError",
    "RequestError",
    "Setting",
    "SharpnessTracker",
    "SpectralDensity",
    "TopEigenvalues",
    "TrackedSharpness",
    "__version__",
    "closed_form",
    "density",
    "load_calibration",
    "module_sharpness",
    "predict_learning_rate",
    "refine_learning_rate",
    "sharpness",
    "top_eigenvalues",
]

# Imported on first use: torch and transformers take seconds, and `hessian-lr --help` needs neither.
_HOMES = {
    "AdamSharpness": "measure",
    "Calibration": "predict",
    "ClosedForm": "curvature",
    "Curvature": "measure",
    "HessianLRError": "errors",
    "ModuleSharpness": "measure",
    "ModuleSpectrum": "measure",
    "NonFiniteError": "errors",
    "NotTwiceDifferentiable": "errors",
    "Prediction": "predict",
    "RankError": "errors",
    "RequestError": "errors",
    "Setting": "setting",
    "SharpnessTracker": "measure",
    "SpectralDensity": "spectrum",
    "TopEigenvalues": "measure",
    "TrackedSharpness": "measure",
    "closed_form": "curvature",
    "density": "measure",
    "load_calibration": "predict",
    "module_sharpness": "measure",
    "predict_learning_rate": "predict",
    "refine_learning_rate": "predict",
    "sharpness": "measure",
    "top_eigenvalues": "measure",
}
# Rooms to go into: `hlr.integrations.…` without an import of its own.
_ROOMS = ("distributed", "integrations", "study")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
