"""Predict, sweep and score several methods, so that a killed job goes on where it stopped."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import results
from ..checkpoints import Checkpoints
from ..data import TaskData
from ..errors import HessianLRError, RequestError
from ..figures import eigenvalue_figure, sweep_figure
from ..figures.style import save
from ..fitting import check_batch_size
from ..methods import method_of
from ..models import LoadedModel
from ..predict import Calibration, Prediction, predict_learning_rate
from ..predict.classical import NONE, stability_bound, unpredicted
from ..predict.law import Quantities
from ..predict.predictor import quantities
from ..predict.rate import FALLBACKS, PROBE, rate
from ..prepare import prepare, split_rows
from ..progress import Progress
from ..records import digest, read_json, write_sealed
from ..score import Score, score
from ..setting import ADAMW, SGD, Setting
from ..sweep import Sweep, sweep
from ..sweep.engine import Engine
from ..sweep.run import precision_name
from ..sweep.runner import finished_runs
from ..sweep.wanted import complete_runs
from .joined import earlier, write_joined
from .probe import probed

# A learning rate, and the ends of its range.
Ends = tuple[float | None, float | None, float | None]
# Where the search for the best learning rate starts if there is no prediction: a common default.
FALLBACK_LR = 3e-4

# Of a prediction's row, what `calibrate`, `align` and the report read beside λ and the costs.
_KNOWN = (
    *("sampling_error", "lambda_preconditioned", "lr_stability"),
    *("residual_preconditioned", "sampling_error_preconditioned"),
    *("lr_eigenvalue", "lr_sharpness"),
    *("lr_directional", "lr_critical", "lr_critical_start"),
    *("lr_probe", "probe"),
)


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
        engine: Trains the runs; None: this process.
        calibration_file: Where the constants are from; None: the package's.
    """

    settings: Sequence[Setting]
    loaded: LoadedModel
    data: TaskData
    out: Path
    seeds: Sequence[int]
    lrs: Sequence[float] | None
    predictor: str
    constants: Calibration
    engine: Engine | None = None
    calibration_file: str | None = None


@dataclass(frozen=True)
class Measured:
    """What is known of a method before it is trained.

    Attributes:
        prediction: With all that was measured for it.
        quantities: What the predictors' laws take from it.
        notes: What a reader should know of the rows and files.
    """

    prediction: Prediction
    quantities: Quantities
    notes: tuple[str, ...]


def validate(job: Job, progress: Progress) -> dict[str, Any]:
    """Do the job; ``validate.json`` is written after each method, the figures at the end.

    Rows of other methods in the file stay there, and one that tells more than the job's own, which failed.
    A failed prediction does not keep a method from its sweep, nor a failed sweep the other methods.

    Returns:
        What stands in ``validate.json`` of the job's own methods.

    Raises:
        RequestError: a method does not fit the model, the data cannot fill a batch, or the file holds results
            that would be lost.
        HessianLRError: the folder cannot be written.
    """
    check_batch_size(job.settings[0], job.data)
    path = job.out / results.VALIDATE_FILE
    damage = earlier(path, _document(job, [], [])).notes
    rows: list[dict[str, Any]] = []
    for index, setting in enumerate(job.settings, 1):
        progress.method(setting.method, index, len(job.settings))
        measured = _measure(job, setting, progress)
        if job.predictor == PROBE and setting.optimizer == ADAMW:
            measured = _with_short_runs(job, setting, measured, progress)
        rates, failures = predicted(measured, job.constants)
        lr, low, high = rates[job.predictor]
        asked: dict[str, Any] = {
            "start_lr": lr or _theory(setting, measured) or FALLBACK_LR,
            **{"lrs": job.lrs, "seeds": job.seeds, "out": job.out},
        }
        failed = False
        try:
            found = sweep(setting, job.loaded, job.data, progress=progress.sweep, engine=job.engine, **asked)
        except RequestError:
            raise
        except (HessianLRError, MemoryError) as error:
            failed = True
            failures.append(f"sweep failed: {str(error) or type(error).__name__}")
            found = finished_runs(setting, job.loaded, job.data, **asked)
        if {run.setting.seed for run in found.runs} == set(job.seeds) and complete_runs(found.runs):
            scored = score(found, lr, low, high)
        else:  # of a sweep that failed
            scored = Score(None, None, None, None, True, lr, low, high, None, None, None)
        rows.append(_row(job, setting, measured, rates, found, scored, failures, failed=failed))
        document = _document(job, rows, damage)
        kept = write_joined(path, document)
    for row in rows:
        if row["method"] in kept:
            row["notes"].insert(0, f"{path} keeps the row of an earlier call, which tells more")
    _draw(results.read_validated([path]), job.out)
    return document


def _document(job: Job, rows: Sequence[dict[str, Any]], notes: Sequence[str]) -> dict[str, Any]:
    return results.document(
        job.settings,
        rows,
        seeds=list(job.seeds),
        lrs="auto" if job.lrs is None else list(job.lrs),
        data_digest=job.data.digest,
        model_fingerprint=job.loaded.fingerprint,
        notes=[*job.data.notes, *notes],
    )


def predicted(measured: Measured, constants: Calibration) -> tuple[dict[str, Ends], list[str]]:
    """Each predictor's learning rate and the ends of its range, None if it has none; why a law gives none."""
    rates: dict[str, Ends] = {}
    failures = []
    for name in FALLBACKS:
        found = None
        try:
            found = rate(name, constants, measured.quantities)
        except HessianLRError as error:
            failures.append(str(error))
        rates[name] = found.ends if found else (None, None, None)
    return rates, failures


def _with_short_runs(job: Job, setting: Setting, measured: Measured, progress: Progress) -> Measured:
    prediction = probed(
        setting,
        job.loaded,
        job.data,
        measured.prediction,
        job.constants,
        out=job.out,
        progress=partial(progress.sweep, stage="short runs"),
        engine=job.engine,
    )
    found = prediction.probe.lr if prediction.probe else None
    return replace(measured, prediction=prediction, quantities=replace(measured.quantities, lr_probe=found))


def _theory(setting: Setting, measured: Measured) -> float | None:
    """Where a search starts without a prediction: 2/λ for gradient descent."""
    curvature = measured.prediction.curvature
    return stability_bound(curvature) if setting.optimizer == SGD and curvature else None


def _measure(job: Job, setting: Setting, progress: Progress) -> Measured:
    """A method's measurements, from their file in ``job.out`` if it is there."""
    notes: list[str] = []
    optimizer = method_of(setting).optimizer
    if optimizer is not None:
        notes.append("λ at initialization knows nothing of this method's optimizer: no rate is read from it")
    # What "auto" is here: a folder may go on on another machine.
    named = setting.to_dict() | {"dtype": precision_name(setting)}
    identity = [named, job.data.digest, job.loaded.fingerprint, job.constants.to_dict()]
    identity.append(results.versions())  # the document's, so that they are true of all its numbers
    path = job.out / f"prediction-{digest(identity, 12)}.json"
    prediction = _read(path, identity, notes)
    if prediction is None:
        prepared = prepare(setting, job.loaded, job.data)
        checkpoints = Checkpoints(job.out / "checkpoints", setting)
        common: dict[str, Any] = {
            "dtype": prepared.dtype,
            "seed": setting.seed,
            "report": progress.report,
            "checkpoints": checkpoints,
        }
        if setting.optimizer == ADAMW:
            prediction = predict_learning_rate(
                prepared.model,
                prepared.batches,
                warmup_batches=prepared.warmup_batches,
                predictor="combined",
                steps=setting.steps,
                batch_size=setting.batch_size,
                calibration=job.constants,
                optimizer=optimizer,
                **common,
            )
        else:
            prediction = unpredicted(
                prepared.model, prepared.batches, calibration=job.constants.version, **common
            )
        notes += checkpoints.notes
        if prediction.status != "failed":
            write_sealed(path, {"schema": 1, "identity": identity, "prediction": prediction})
            checkpoints.clear()
        del prepared
        gc.collect()  # the sweep needs the room of this copy of the model
    sample, _, rows_notes = split_rows(setting, job.data.train)
    known = quantities(
        prediction.adam,
        prediction.curvature,
        optimizer is not None or setting.optimizer != ADAMW,
        batch_size=setting.batch_size,
        steps=setting.steps,
        samples=len(sample),
    )
    return Measured(prediction, known, (*rows_notes, *notes))


def _read(path: Path, identity: list[Any], notes: list[str]) -> Prediction | None:
    """The prediction of this identity from its file; None if it is not there or not whole."""
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        if stored["identity"] == identity:
            return Prediction.from_dict(stored["prediction"])
        notes.append(f"{path} described something else; it was measured again")
    except (RequestError, KeyError, TypeError) as error:
        notes.append(f"{path} was damaged and was measured again: {error}")
    return None


def _row(
    job: Job,
    setting: Setting,
    measured: Measured,
    rates: Mapping[str, Ends],
    found: Sweep,
    scored: Score,
    failures: Sequence[str],
    *,
    failed: bool,
) -> dict[str, Any]:
    """A row of ``validate.json``: the sweep, the score, and what ``calibrate`` and ``align`` need."""
    prediction = measured.prediction
    known = results.prediction_row(setting.method, prediction)
    named = prediction.predictor != NONE
    failed |= named and scored.predicted_lr is None
    notes = [*measured.notes, *prediction.notes, *found.notes, *failures]
    return {
        "method": setting.method,
        "status": "failed" if failed else prediction.status,
        "runs": [results.run_row(run) for run in found.runs],
        **scored.to_dict(),
        **{name: known[name] for name in (*results.LAMBDAS, *_KNOWN, *results.COSTS)},
        "samples": measured.quantities.samples,
        "sweep_seconds": sum(run.seconds for run in found.runs) if found.runs else None,
        "predictor": job.predictor if named else None,
        "calibration": job.constants.version,
        "calibration_file": job.calibration_file,
        "predictions": {
            name: dict(zip(("lr", "lr_low", "lr_high"), ends, strict=True))
            for name, ends in rates.items()
            if name != PROBE or measured.quantities.lr_probe is not None
        },
        "notes": list(dict.fromkeys(notes)),
    }


def _draw(rows: Sequence[results.Validated], out: Path) -> None:
    """The two figures; what has no point on a logarithmic axis is left out."""
    if panels := [results.sweep_panel(one) for one in rows if one.row["runs"]]:
        save(sweep_figure(panels), out / "sweep.svg")
    if points := results.eigenvalue_points(rows):
        save(eigenvalue_figure(points), out / "eigenvalue.svg")
