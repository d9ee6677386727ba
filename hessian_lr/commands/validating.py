"""Predict, sweep and score several methods, so that a killed job goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import results
from ..data import TaskData
from ..errors import HessianLRError, reason
from ..figures import eigenvalue_figure, sweep_figure
from ..figures.rows import eigenvalue_points, sweep_panel
from ..figures.style import save
from ..files import VALIDATE_FILE
from ..limits import check_batch_size
from ..models import LoadedModel
from ..predict.classical import stability_bound
from ..progress import Progress
from ..score import chance
from ..setting import SGD, Setting
from ..sweep import Sweep, sweep
from ..sweep.engine import Engine
from ..sweep.runner import finished_runs
from ..validated import Validated, read_validated
from .joined import earlier, write_joined
from .measured import Measured, Predicting, has_failed, measure, scored_row

# Where the search for the best learning rate starts if there is no prediction: a common default.
FALLBACK_LR = 3e-4


@dataclass(frozen=True)
class Job:
    """What ``validate`` is asked to do.

    Attributes:
        settings: One a method, all else equal.
        loaded, data: Their model and data.
        out: Folder of everything that is written.
        seeds: Seeds of the runs.
        lrs: The learning rates to run; None: search around the prediction.
        predicting: How they are predicted.
        engine: Trains the runs; None: this process.
    """

    settings: Sequence[Setting]
    loaded: LoadedModel
    data: TaskData
    out: Path
    seeds: Sequence[int]
    lrs: Sequence[float] | None
    predicting: Predicting
    engine: Engine | None = None


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
    path = job.out / VALIDATE_FILE
    damage = earlier(path, _document(job, [], [])).notes
    rows: list[dict[str, Any]] = []
    for index, setting in enumerate(job.settings, 1):
        progress.method(setting.method, index, len(job.settings))
        measured = measure(
            setting, job.loaded, job.data, job.predicting, out=job.out, progress=progress, engine=job.engine
        )
        failures = list(measured.failures)
        lr, _, _ = measured.rates[job.predicting.predictor]
        asked: dict[str, Any] = {
            "start_lr": lr or _theory(setting, measured) or FALLBACK_LR,
            **{"lrs": job.lrs, "seeds": job.seeds, "out": job.out},
        }
        failed = False
        try:
            found = sweep(setting, job.loaded, job.data, progress=progress.sweep, engine=job.engine, **asked)
        except (HessianLRError, MemoryError) as error:
            failed = True
            failures.append(f"sweep failed: {reason(error)}")
            found = finished_runs(setting, job.loaded, job.data, **asked)
        rows.append(_row(job, setting, measured, found, failures, failed=failed))
        document = _document(job, rows, damage)
        kept = write_joined(path, document)
    for row in rows:
        if row["method"] in kept:
            row["notes"].insert(0, f"{path} keeps the row of an earlier call, which tells more")
    _draw(read_validated([path]), job.out)
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


def _theory(setting: Setting, measured: Measured) -> float | None:
    """Where a search starts without a prediction: 2/λ for gradient descent."""
    curvature = measured.prediction.curvature
    return stability_bound(curvature) if setting.optimizer == SGD and curvature else None


def _row(
    job: Job,
    setting: Setting,
    measured: Measured,
    found: Sweep,
    failures: Sequence[str],
    *,
    failed: bool,
) -> dict[str, Any]:
    """A row of ``validate.json``: the sweep, the score, and what ``calibrate`` and ``align`` need."""
    failed |= has_failed(measured, job.predicting)
    notes = [*measured.notes, *measured.prediction.notes, *found.notes, *failures]
    if rugged := chance(found.runs):
        notes.append(rugged)
    return {
        "method": setting.method,
        "status": "failed" if failed else measured.prediction.status,
        "runs": [results.run_row(run) for run in found.runs],
        **scored_row(setting, found.runs, job.seeds, measured, job.predicting),
        "notes": list(dict.fromkeys(notes)),
    }


def _draw(rows: Sequence[Validated], out: Path) -> None:
    """The two figures; what has no point on a logarithmic axis is left out."""
    if panels := [sweep_panel(one) for one in rows if one.row["runs"]]:
        save(sweep_figure(panels), out / "sweep.svg")
    if points := eigenvalue_points(rows):
        save(eigenvalue_figure(points), out / "eigenvalue.svg")
