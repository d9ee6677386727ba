"""The JSON that commands write: one document a command, one row a method."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

from . import __version__
from .curvature import ClosedForm
from .files import COSTS, LAMBDAS, RUN, SCHEMA
from .measure import Curvature, ModuleSpectrum
from .predict import Prediction
from .predict.start import lr_eigenvalue, lr_sharpness
from .setting import Setting
from .spectrum import SpectralDensity
from .sweep import RunResult

_PACKAGES = ("torch", "transformers", "peft")


def document(settings: Sequence[Setting], results: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A command's JSON: the settings differ in their method only."""
    common = settings[0].to_dict()
    del common["method"]
    common["methods"] = [setting.method for setting in settings]
    return {
        "schema": SCHEMA,
        "setting": common,
        "results": list(results),
        "versions": versions(),
        **more,
    }


def versions() -> dict[str, str]:
    """Of all that results may depend on."""
    own = {"hessian-lr": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in _PACKAGES}


def prediction_row(method: str, prediction: Prediction) -> dict[str, Any]:
    """A row of ``predict``.

    ``residual`` and ``sampling_error`` belong to λ at initialization (``lambda_max``), or where that was
    not measured to ``lambda_preconditioned``, whose own stand beside it in any case.
    """
    curvature, adam = prediction.curvature, prediction.adam
    measured = curvature or adam
    return {
        "method": method,
        "status": prediction.status,
        **{name: getattr(curvature, name, None) for name in LAMBDAS},
        "residual": getattr(measured, "residual", None),
        "sampling_error": getattr(measured, "sampling_error", None),
        **{name: getattr(prediction, name) for name in COSTS},
        "lambda_preconditioned": getattr(adam, "lambda_preconditioned", None),
        "residual_preconditioned": getattr(adam, "residual", None),
        "sampling_error_preconditioned": getattr(adam, "sampling_error", None),
        "lr_stability": getattr(adam, "lr_stability", None),
        "lr_eigenvalue": curvature and lr_eigenvalue(curvature),
        "lr_sharpness": curvature and lr_sharpness(curvature),
        "lr_directional": getattr(adam, "lr_directional", None),
        "lr_critical": getattr(adam, "lr_critical", None),
        "lr_critical_start": getattr(adam, "lr_critical_start", None),
        "warmup_steps": getattr(adam, "warmup_steps", None),
        "lr_probe": getattr(prediction.probe, "lr", None),
        "probe": prediction.probe and prediction.probe.to_dict(),
        "lr": prediction.lr,
        "lr_low": prediction.lr_low,
        "lr_high": prediction.lr_high,
        "predictor": prediction.predictor,
        "calibration": prediction.calibration,
        "notes": list(prediction.notes),
    }


def spectrum_row(
    method: str,
    curvature: Curvature,
    bracket: ClosedForm | None = None,
    density: SpectralDensity | None = None,
    modules: ModuleSpectrum | None = None,
) -> dict[str, Any]:
    """A row of ``spectrum``; what was not asked for is null."""
    more = {"bracket": bracket, "density": density, "modules": modules}
    return {
        "method": method,
        **curvature.to_dict(),
        **{name: one and one.to_dict() for name, one in more.items()},
    }


def run_row(run: RunResult) -> dict[str, Any]:
    """A run in a row of ``validate``."""
    return {**{name: getattr(run, name) for name in RUN}, "seed": run.setting.seed}
