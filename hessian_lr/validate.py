"""Predict, sweep and score several methods, so that a killed job goes on where it stopped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import results
from .curvature.weight_gradients import gradient_norms
from .data import TaskData
from .errors import HessianLRError, RequestError
from .figure_style import save
from .figures import EigenvaluePoint, SweepPanel, eigenvalue_figure, sweep_figure
from .measure import Curvature, sharpness
from .methods import method_of
from .models import LoadedModel
from .predict import PREDICTORS, Calibration, Prediction, predict_learning_rate
from .prepare import Prepared, prepare, split_rows
from .progress import Progress
from .records import digest, read_json, write_json
from .score import Score, score
from .setting import Setting
from .sweep import Sweep, sweep

# Where the search for the best learning rate starts if there is no prediction: a common default.
FALLBACK_LR = 3e-4

R = TypeVar("R", Prediction, Curvature)


@dataclass(frozen=True)
class Job:
    """What ``validate`` is asked to do.

    Attributes:
        settings: One a method, all else equal.
        loaded, data: Their model and data.
        out: Folder of everything that is written.
        seeds: Seeds of the runs.
        lrs: The learning rates to run; None: search around the prediction.
        predictor: The one that is scored.
        constants: Its calibration.
    """

    settings: Sequence[Setting]
    loaded: LoadedModel
    data: TaskData
    out: Path
    seeds: Sequence[int]
    lrs: Sequence[float] | None
    predictor: str
    constants: Calibration


@dataclass(frozen=True)
class Measured:
    """What is known of a method before it is trained.

    Attributes:
        adam: The prediction from λ_P.
        curvature: λ at initialization.
        gradient_norm: Largest spectral norm of the loss's gradient over an adapted weight; None
            where ``curvature`` failed.
        notes: What a reader should know.
    """

    adam: Prediction
    curvature: Curvature
    gradient_norm: float | None
    notes: tuple[str, ...]

    @property
    def lambda_ratio(self) -> float | None:
        """λ / ``gradient_norm``, where both are positive."""
        value = self.curvature.lambda_max
        return value / self.gradient_norm if value and self.gradient_norm and value > 0 else None


def validate(job: Job, progress: Progress) -> dict[str, Any]:
    """Do the job; ``validate.json`` is written after each method, the figures at the end.

    A failed prediction does not keep a method from its sweep, nor a failed sweep the other methods.

    Returns:
        What stands in ``validate.json``.

    Raises:
        RequestError: a method does not fit the model.
        HessianLRError: the folder cannot be written.
    """
    rows: list[dict[str, Any]] = []
    drawn: list[tuple[SweepPanel, Curvature]] = []
    for index, setting in enumerate(job.settings, 1):
        progress.method(setting.method, index, len(job.settings))
        measured = _measure(job, setting, progress)
        lr, low, high = predicted(job.predictor, measured, setting, job.constants)
        found, failure = None, None
        try:
            found = sweep(
                setting,
                job.loaded,
                job.data,
                start_lr=lr or FALLBACK_LR,
                lrs=job.lrs,
                seeds=job.seeds,
                out=job.out,
                progress=progress.sweep,
            )
            scored = score(found, lr, low, high)
            drawn.append((SweepPanel(found, scored), measured.curvature))
        except RequestError:
            raise
        except (HessianLRError, MemoryError) as error:
            scored = Score(None, None, None, None, True, lr, low, high, None, None, None)
            failure = f"sweep failed: {str(error) or type(error).__name__}"
        rows.append(_row(job, setting, measured, found, scored, failure))
        document = results.document(
            job.settings,
            rows,
            seeds=list(job.seeds),
            lrs="auto" if job.lrs is None else list(job.lrs),
            data_digest=job.data.digest,
            model_fingerprint=job.loaded.fingerprint,
            notes=list(job.data.notes),
        )
        write_json(job.out / results.VALIDATE_FILE, document)
    _draw(drawn, job.out)
    return document


def predicted(
    predictor: str, measured: Measured, setting: Setting, constants: Calibration
) -> tuple[float | None, float | None, float | None]:
    """The learning rate of a predictor and the ends of its range; None if it has none."""
    if predictor == "adam":
        return measured.adam.lr, measured.adam.lr_low, measured.adam.lr_high
    if measured.lambda_ratio is None:
        return None, None, None
    law = constants.eigenvalue
    quantities = {
        "lambda_ratio": measured.lambda_ratio,
        "batch_size": setting.batch_size,
        "steps": setting.steps,
    }
    lr, factor = law(**quantities), law.range_factor(**quantities)
    return lr, lr / factor, lr * factor


def _measure(job: Job, setting: Setting, progress: Progress) -> Measured:
    """Both measurements of a method, each from its file in ``job.out`` if it is there."""
    ready: list[Prepared] = []
    notes: list[str] = []
    optimizer = method_of(setting).optimizer
    if optimizer is not None:
        notes.append("λ at initialization knows nothing of this method's optimizer: no rate is read from it")

    def prepared() -> Prepared:
        if not ready:
            ready.append(prepare(setting, job.loaded, job.data))
        return ready[0]

    def predict() -> tuple[Prediction, None]:
        p = prepared()
        prediction = predict_learning_rate(
            p.model,
            p.batches,
            warmup_batches=p.warmup_batches,
            predictor="adam",
            steps=setting.steps,
            batch_size=setting.batch_size,
            dtype=p.dtype,
            calibration=job.constants,
            seed=setting.seed,
            optimizer=optimizer,
            report=progress.report,
        )
        return prediction, None

    def measure() -> tuple[Curvature, float | None]:
        p = prepared()
        curvature = sharpness(p.model, p.batches, dtype=p.dtype, seed=setting.seed, progress=progress.lanczos)
        if curvature.status == "failed" or optimizer is not None:
            return curvature, None
        return curvature, max(gradient_norms(p.model, p.batches, p.dtype).values())

    identity = [setting.to_dict(), job.data.digest, job.loaded.fingerprint]
    constants = job.constants
    adam, _ = _kept(job.out, "prediction", [*identity, constants.to_dict()], Prediction, predict, notes) or (
        Prediction.failed("adam", constants.version, notes[-1]),
        None,
    )
    curvature, norm = _kept(job.out, "curvature", identity, Curvature, measure, notes) or (
        Curvature.failed(notes[-1]),
        None,
    )
    ready.clear()
    gc.collect()  # the sweep needs the room of this copy of the model
    *_, rows_notes = split_rows(setting, job.data.train)
    return Measured(adam, curvature, norm, (*rows_notes, *notes))


def _kept(
    out: Path,
    kind: str,
    identity: list[Any],
    record: type[R],
    make: Callable[[], tuple[R, float | None]],
    notes: list[str],
) -> tuple[R, float | None] | None:
    """A measurement of this identity from its file, or made and written; None if its making failed."""
    path = out / f"{kind}-{digest(identity, 12)}.json"
    if path.exists():
        try:
            stored = read_json(path)
            if stored["identity"] == identity:
                return record.from_dict(stored[kind]), stored["gradient_norm"]
            notes.append(f"{path} described something else; it was measured again")
        except (RequestError, KeyError, TypeError) as error:
            notes.append(f"{path} was damaged and was measured again: {error}")
    try:
        made, norm = make()
    except RequestError:
        raise
    except (HessianLRError, MemoryError, torch.OutOfMemoryError) as error:
        notes.append(f"{kind} failed: {str(error) or type(error).__name__}")
        return None
    if made.status != "failed":
        write_json(path, {"schema": 1, "identity": identity, kind: made, "gradient_norm": norm})
    return made, norm


def _row(
    job: Job,
    setting: Setting,
    measured: Measured,
    found: Sweep | None,
    scored: Score,
    failure: str | None,
) -> dict[str, Any]:
    """A row of ``validate.json``: the sweep, the score, and what ``calibrate`` and ``align`` need."""
    adam = results.prediction_row(setting.method, measured.adam)
    chosen = measured.adam if job.predictor == "adam" else measured.curvature
    failed = failure is not None or scored.predicted_lr is None
    notes = [*measured.notes, *chosen.notes, *(found.notes if found else ()), *([failure] if failure else [])]
    # The other measurement is not scored, but its absence from the figure or the calibration is explained.
    for other in (measured.adam, measured.curvature):
        notes += other.notes if other.status == "failed" else ()
    return {
        "method": setting.method,
        "status": "failed" if failed else chosen.status,
        "runs": [results.run_row(run) for run in found.runs] if found else [],
        **scored.to_dict(),
        **{name: getattr(measured.curvature, name) for name in results.LAMBDAS},
        "sampling_error": measured.curvature.sampling_error,
        "gradient_norm": measured.gradient_norm,
        "lambda_ratio": measured.lambda_ratio,
        **{
            name: adam[name]
            for name in ("lambda_preconditioned", "lr_stability", "lr_directional", "lr_critical")
        },
        **{name: getattr(chosen, name) for name in results.COSTS},
        "sweep_seconds": sum(run.seconds for run in found.runs) if found else None,
        "predictor": job.predictor,
        "calibration": job.constants.version,
        "predictions": {
            name: dict(
                zip(
                    ("lr", "lr_low", "lr_high"),
                    predicted(name, measured, setting, job.constants),
                    strict=True,
                )
            )
            for name in PREDICTORS
        },
        "notes": list(dict.fromkeys(notes)),
    }


def _draw(drawn: Sequence[tuple[SweepPanel, Curvature]], out: Path) -> None:
    """The two figures; what has no point on a logarithmic axis is left out."""
    if drawn:
        save(sweep_figure([panel for panel, _ in drawn]), out / "sweep.svg")
    points = []
    for panel, curvature in drawn:
        value = curvature.lambda_max
        if value is not None and value > 0 and panel.score.best_lr is not None:
            bar = results.error_bar(curvature.to_dict())
            points.append(EigenvaluePoint(panel.sweep.setting.method, value, *bar, panel.score))
    if points:
        save(eigenvalue_figure(points), out / "eigenvalue.svg")
