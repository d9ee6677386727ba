"""The rows of the JSON that commands write: one a method, or of a sweep one a setting.

What each field is stands in docs/results.md. Fields with a default are lacking in files of earlier versions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from .curvature import ClosedForm
from .errors import RequestError
from .measure import Curvature, ModuleSpectrum, TopEigenvalues
from .predict import Prediction
from .predict.extent import EXTENT
from .predict.prediction import Probe
from .predict.start import lr_eigenvalue, lr_sharpness
from .records import Record, Result
from .score import Score
from .spectrum import SpectralDensity
from .sweep import RunResult
from .sweep.run import check_numbers

M = TypeVar("M", bound="MethodRow")


class MethodRow(Result):
    """Base of a method's or a setting's."""

    method: str
    status: str

    @classmethod
    def from_dict(cls: type[M], values: dict[str, Any]) -> M:
        """As ``Result.from_dict``; the message says which row it was."""
        try:
            return super().from_dict(values)
        except RequestError as error:
            named = isinstance(values, dict) and (values.get("label") or values.get("method"))
            row = f"its row {named!r}" if named else "a row of it"
            raise RequestError(f"{row} is not as it is written here: {error.__cause__ or error}") from error

    @property
    def name(self) -> str:
        """What tells it from the others of its file."""
        return self.method

    @property
    def measured_status(self) -> str:
        """How its measurement ended."""
        return self.status


@dataclass(frozen=True)
class RunRow(Result):
    """A run of a sweep.

    Raises:
        RequestError: a number is missing or out of its range (a damaged file).
    """

    lr: float
    seed: int
    initial_loss: float
    final_loss: float | None
    steps: int
    diverged: bool
    seconds: float
    # Earlier files of `validate` lack them.
    key: str | None = None
    train_tokens: int | None = None

    def __post_init__(self) -> None:
        others = {"lr": self.lr, "initial_loss": self.initial_loss, "seconds": self.seconds}
        check_numbers(self.final_loss, self.diverged, **others)

    @classmethod
    def of(cls, run: RunResult) -> RunRow:
        """A run as it stands beside others of its setting."""
        names = (field.name for field in dataclasses.fields(cls) if field.name != "seed")
        return cls(seed=run.setting.seed, **{name: getattr(run, name) for name in names})


@dataclass(frozen=True)
class Ends(Result):
    """A learning rate with the ends of its range; None where there is none."""

    lr: float | None
    lr_low: float | None
    lr_high: float | None


@dataclass(frozen=True, kw_only=True)
class MeasuredRow(MethodRow):
    """What is known before training: of ``predict``'s rows, and of those of sweeps.

    ``sampling_error`` belongs to λ at initialization (``lambda_max``), or where that was not measured to
    ``lambda_preconditioned``, whose own stands beside it in any case.
    """

    method: str
    status: str
    lambda_max: float | None
    lambda_lower: float | None
    lambda_upper: float | None
    lambda_min: float | None
    sampling_error: float | None
    matvecs: int | None
    gradient_equivalents: float | None
    seconds: float | None
    peak_rss_bytes: int | None
    lambda_preconditioned: float | None
    lambda_upper_preconditioned: float | None = None
    residual_preconditioned: float | None = None
    rounding_preconditioned: float | None = None
    sampling_error_preconditioned: float | None = None
    lr_stability: float | None = None
    lr_eigenvalue: float | None = None
    lr_sharpness: float | None = None
    lr_directional: float | None = None
    lr_critical: float | None = None
    lr_critical_start: float | None = None
    lr_probe: float | None = None
    probe: Probe | None = None
    samples: int | None = None
    model_size: int | None = None
    adapter_rank: int | None = None
    adapter_scaling: float | None = None
    predictor: str | None
    calibration: str | None
    calibration_file: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PredictionRow(MeasuredRow):
    """A row of ``predict``; ``residual`` belongs to what ``sampling_error`` does."""

    residual: float | None
    warmup_steps: int | None = None
    lr: float | None
    lr_low: float | None
    lr_high: float | None
    fast: bool = False
    sources: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PredictionRow:
        """As ``Result.from_dict``; earlier versions call ``sources`` ``from``."""
        if isinstance(values, dict) and "from" in values:
            values = {"sources": values["from"], **values}
        return super().from_dict(values)

    @classmethod
    def of(cls, method: str, prediction: Prediction, **asked: Any) -> PredictionRow:
        """A prediction, and what it was asked for with."""
        measured = prediction.curvature or prediction.adam
        return cls(
            method=method,
            status=prediction.status,
            **measurements(prediction),
            residual=None if measured is None else measured.residual,
            warmup_steps=None if prediction.adam is None else prediction.adam.warmup_steps,
            lr=prediction.lr,
            lr_low=prediction.lr_low,
            lr_high=prediction.lr_high,
            predictor=prediction.predictor,
            calibration=prediction.calibration,
            notes=prediction.notes,
            **asked,
        )


@dataclass(frozen=True, kw_only=True)
class SpectrumRow(Curvature, MethodRow):
    """A row of ``spectrum``; what was not asked for is None."""

    method: str
    bracket: ClosedForm | None = None
    top: TopEigenvalues | None = None
    density: SpectralDensity | None = None
    modules: ModuleSpectrum | None = None
    request: dict[str, Any] | None = None

    @classmethod
    def of(cls, method: str, curvature: Curvature, **more: Any) -> SpectrumRow:
        """A method's λ, and what else was measured."""
        return cls(method=method, **vars(curvature), **more)


@dataclass(frozen=True, kw_only=True)
class ScoredRow(Score, MeasuredRow):
    """A row of ``validate``: a sweep, the score of what was predicted, and what was measured."""

    runs: tuple[RunRow, ...]
    predictions: dict[str, Ends] | None = None
    sweep_seconds: float | None

    @property
    def score(self) -> Score:
        """The score alone."""
        return Score(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Score)})


@dataclass(frozen=True)
class Missing(Result):
    """A run that is still to be made."""

    lr: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class SweepRow(ScoredRow):
    """A row of ``sweep``: a setting."""

    label: str
    setting: dict[str, Any]
    seeds: tuple[int, ...]
    lrs: str | tuple[float, ...]
    prediction_status: str | None = None
    missing: tuple[Missing, ...]
    data_digest: str | None
    model_fingerprint: str | None

    @property
    def name(self) -> str:
        """What tells it from the others of its file."""
        return self.label

    @property
    def measured_status(self) -> str:
        """How its measurement ended, and where none was asked for its runs: ``status`` is of these alone."""
        return self.prediction_status or self.status


# A row of any command.
AnyRow = PredictionRow | SpectrumRow | ScoredRow


def measurements(prediction: Prediction) -> dict[str, Any]:
    """What a prediction measured, and what it cost, by the names of ``MeasuredRow``."""
    curvature, adam = prediction.curvature, prediction.adam
    return {
        **_of(curvature, "lambda_max", "lambda_lower", "lambda_upper", "lambda_min"),
        **_of(curvature or adam, "sampling_error"),
        **_of(prediction, "matvecs", "gradient_equivalents", "seconds", "peak_rss_bytes"),
        **_of(adam, "lambda_preconditioned"),
        "lambda_upper_preconditioned": adam and adam.upper,
        "residual_preconditioned": adam and adam.residual,
        "rounding_preconditioned": adam and adam.rounding,
        "sampling_error_preconditioned": adam and adam.sampling_error,
        **_of(adam, "lr_stability", "lr_directional", "lr_critical", "lr_critical_start"),
        "lr_eigenvalue": curvature and lr_eigenvalue(curvature),
        "lr_sharpness": curvature and lr_sharpness(curvature),
        "lr_probe": prediction.probe and prediction.probe.lr,
        "probe": prediction.probe,
        **_of(prediction, *EXTENT),
    }


def _of(one: Record | None, *names: str) -> dict[str, Any]:
    return {name: one and getattr(one, name) for name in names}


# What `measurements` has where nothing was.
NOTHING = dict.fromkeys(measurements(Prediction.failed("", "", "")))
