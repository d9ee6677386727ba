"""The JSON that commands write and read back: one document a command, one row a method."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .copies import once
from .curvature import ClosedForm
from .data import TASKS
from .errors import RequestError
from .figures import EigenvaluePoint, SweepPanel
from .measure import Curvature, ModuleSpectrum
from .methods import METHODS
from .models import ALIASES
from .predict import Prediction
from .predict.fit import Observation
from .predict.law import Quantities
from .predict.start import lr_eigenvalue, lr_sharpness
from .records import read_json
from .score import Score
from .setting import ADAMW, OPTIMIZERS, Setting
from .spectrum import SpectralDensity
from .sweep import RunResult, Sweep

SCHEMA = 1
VALIDATE_FILE = "validate.json"

LAMBDAS = ("lambda_max", "lambda_lower", "lambda_upper", "lambda_min")
COSTS = ("matvecs", "gradient_equivalents", "seconds", "peak_rss_bytes")
_PACKAGES = ("torch", "transformers", "peft")
_RUN = ("lr", "initial_loss", "final_loss", "steps", "diverged", "seconds")


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
    return {**{name: getattr(run, name) for name in _RUN}, "seed": run.setting.seed}


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """What can be named in a setting, list by list."""
    methods = [
        {"name": m.name, "summary": m.summary, "source": m.source, "zero_b": m.zero_b}
        for m in METHODS.values()
    ]
    return {
        "methods": methods,
        "tasks": [{"name": name, "summary": text} for name, text in TASKS.items()],
        "models": [{"name": name, "summary": text} for name, text in ALIASES.items()],
        "optimizers": [{"name": name} for name in OPTIMIZERS],
    }


@dataclass(frozen=True)
class Validated:
    """One method's row of a ``validate.json``.

    Attributes:
        file: The file it was read from.
        setting: The common setting.
        row: The row itself.
        score: Its scores.
    """

    file: Path
    setting: dict[str, Any]
    row: dict[str, Any]
    score: Score

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.row["method"])

    def number(self, name: str) -> float | None:
        """A number of the row, or None where it has none.

        Raises:
            RequestError: something that is not a number stands there.
        """
        value = self.row.get(name)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        raise RequestError(f"{self.file}: {name} of {self.method} is {value!r}, not a number")


def read_validated(paths: Sequence[str | Path]) -> list[Validated]:
    """The rows of all methods in some ``validate.json`` files, or in folders that hold one.

    A file named twice counts once.

    Raises:
        RequestError: there is no such file, or it is not what ``validate`` wrote.
    """
    files: dict[Path, None] = {}
    for path in map(Path, paths):
        file = path / VALIDATE_FILE if path.is_dir() else path
        if not file.is_file():
            raise RequestError(f"there is no {file}; name a folder that `hessian-lr validate --out` wrote")
        files[file.resolve()] = None
    rows: list[Validated] = []
    for file in files:
        found = read_json(file)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise RequestError(f"{file} is not a validate.json of schema {SCHEMA}")
        try:
            rows += [validated_row(file, found["setting"], row) for row in found["results"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{file} is not what `hessian-lr validate` writes: {type(error).__name__} {error}"
            ) from error
    return rows


def sweep_panel(one: Validated) -> SweepPanel:
    """A row's runs as a panel of the picture of sweeps; what a row does not keep of a run is left empty.

    Raises:
        RequestError: the setting or a run is not what ``validate`` writes.
        KeyError: a run lacks a field.
    """
    own = {name: value for name, value in one.setting.items() if name != "methods"}
    setting = Setting.from_dict({**own, "method": one.method})
    runs = []
    for run in one.row["runs"]:
        seeded = {**setting.to_dict(), "seed": run["seed"]}
        kept = {name: run[name] for name in _RUN}
        runs.append(RunResult.from_dict({**kept, "key": "", "setting": seeded, "train_tokens": 0}))
        if not runs[-1].lr > 0:
            raise RequestError(f"a learning rate of {one.method} is {runs[-1].lr}; it must be positive")
    ordered = tuple(sorted(runs, key=lambda run: (run.lr, run.setting.seed)))
    return SweepPanel(Sweep(setting, ordered, one.score.censored), one.score)


def eigenvalue_points(rows: Sequence[Validated]) -> list[EigenvaluePoint]:
    """The rows that have a place in the picture: a positive λ and a best learning rate.

    Raises:
        RequestError: λ or an end of its bar is not a number.
    """
    points = []
    for one in rows:
        value, *ends = map(one.number, ("lambda_max", "lambda_lower", "lambda_upper", "sampling_error"))
        if value is not None and value > 0 and one.score.best_lr is not None:
            points.append(EigenvaluePoint(one.method, value, *error_bar(value, *ends), one.score))
    return points


def error_bar(
    value: float, lower: float | None, upper: float | None, sampling_error: float | None
) -> tuple[float | None, float | None]:
    """Ends of λ's bar: the bounds, and the sampling error where that reaches further."""
    error = sampling_error or 0.0
    low = min(value - error, value if lower is None else lower)
    high = max(value + error, value if upper is None else upper)
    return (low if low > 0 else None), high


def observation(one: Validated) -> Observation | None:
    """What a calibration can learn from a row: None if its best learning rate is unknown, or not AdamW's.

    λ at initialization is left out where the method has an optimizer of its own: as for a prediction, no rate
    is read from it.
    """
    if one.score.best_lr is None or one.score.censored or one.setting.get("optimizer", ADAMW) != ADAMW:
        return None
    names = ("model", "data", "rank", "alpha", "batch_size", "steps", "seed")
    try:
        source = ", ".join(f"{name} {one.setting[name]}" for name in names)
        batch_size, steps = int(one.setting["batch_size"]), int(one.setting["steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{one.file}: its setting lacks what a calibration needs ({error})") from error
    # The data may have had fewer rows than were asked for; earlier versions tell only these.
    asked = one.setting.get("samples")
    samples = one.number("samples") if "samples" in one.row else asked if isinstance(asked, int) else None
    own = one.method in METHODS and METHODS[one.method].optimizer is not None
    return Observation(
        source=f"{one.file.parent.name}: {source}",
        method=one.method,
        best_lr=one.score.best_lr,
        quantities=Quantities(
            batch_size=batch_size,
            steps=steps,
            lr_stability=one.number("lr_stability"),
            lr_critical_start=one.number("lr_critical_start"),
            lr_eigenvalue=None if own else one.number("lr_eigenvalue"),
            lr_sharpness=None if own else one.number("lr_sharpness"),
            lr_probe=one.number("lr_probe"),
            samples=None if samples is None else int(samples),
        ),
    )


def observations(rows: Sequence[Validated]) -> tuple[list[Observation], list[str]]:
    """What a calibration can learn from rows, each setting once, and a note on each that was found again.

    Raises:
        RequestError: a row lacks what a calibration needs.
    """
    return once(
        filter(None, map(observation, rows)),
        key=lambda one: (one.method, one.best_lr, one.quantities),
        name=lambda one: f"{one.method} of {one.source}",
    )


def best_learning_rates(rows: Sequence[Validated]) -> list[tuple[Setting, float]]:
    """Each row's setting with its best learning rate, of those where it lies inside the sweep.

    Raises:
        RequestError: a row's setting is not one.
    """
    found = []
    for one in rows:
        if one.score.best_lr is not None and not one.score.censored:
            values = {name: value for name, value in one.setting.items() if name != "methods"}
            found.append((Setting.from_dict(values | {"method": one.method}), one.score.best_lr))
    return found


def validated_row(file: Path, setting: dict[str, Any], row: dict[str, Any]) -> Validated:
    """A row of ``file``, a ``validate.json``, with its scores.

    Raises:
        RequestError: a score is of the wrong kind.
        KeyError: one is missing.
    """
    if not isinstance(setting, dict):
        raise RequestError(f"the setting of {file} is not an object")
    score = Score.from_dict({field.name: row[field.name] for field in dataclasses.fields(Score)})
    return Validated(file, dict(setting), {"method": row["method"], **row}, score)
