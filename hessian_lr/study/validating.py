"""Predict, sweep and score several methods, so that a killed job goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from ..overwriting import check_overwriting
from ..predict.classical import stability_bound
from ..progress import Progress, quiet_libraries
from ..rows import ScoredRow
from ..score import chance
from ..setting import SGD, Setting
from ..sweep import Sweep, sweep
from ..sweep.engine import Engine
from ..sweep.runner import check_plan, finished_runs
from ..validated import Validated, read_validated
from . import loading
from .joined import earlier, write_joined
from .measured import Measured, Predicting, has_failed, measure, scored
from .predicting import check_predictor, constants_for

# Where the search for the best learning rate starts if there is no prediction: a common default.
FALLBACK_LR = 3e-4


def validate(
    settings: Setting | Sequence[Setting],
    out: str | Path,
    *,
    predictor: str = "combined",
    calibration: str | Path | None = None,
    lrs: Sequence[float] | None = None,
    seeds: Sequence[int] = (0,),
    quiet: bool = False,
) -> list[Validated]:
    """Predict, train and score, as ``hessian-lr validate`` does; the same call goes on after a kill.

    Args:
        settings: One a method, all else equal.
        out: Folder of all results, which ``read`` and the commands find there again.
        predictor: The one that is scored: ``"combined"``, ``"adam"``, ``"eigenvalue"`` or ``"probe"``. What
            each of them says is in ``row.predictions``.
        calibration: File of constants that ``hessian-lr calibrate`` wrote; None: the package's.
        lrs: Peak learning rates to run; None: search around the prediction.
        seeds: Seeds of the runs.
        quiet: No progress on standard error.

    Returns:
        What was found of each setting, in their order. Where a setting failed and the folder has an earlier
        row of it that tells more, that stays in the file, and the first of the ``notes`` says so.

    Raises:
        RequestError: the settings do not go together, or do not fit their model or data; or the folder holds
            other results, which would be lost.
        HessianLRError: the model or the data cannot be loaded, or the folder cannot be written.
    """
    settings = [settings] if isinstance(settings, Setting) else list(settings)
    loading.check(settings)
    check_predictor(predictor, settings)
    check_plan(settings[0], lrs, seeds)
    file, out = None if calibration is None else str(calibration), Path(out)
    check_overwriting([("out", str(out)), ("out", str(out / VALIDATE_FILE))], [file], settings)
    predicting = Predicting(predictor, constants_for(predictor, calibration), file)
    with quiet_libraries(), Progress(quiet) as progress:
        loaded, data = loading.load(settings, quiet=quiet)
        document = Job(settings, loaded, data, out, seeds, lrs, predicting).run(progress)
    kept = {one.method: one for one in read_validated([out / VALIDATE_FILE])}
    # A row that failed is this call's, also where the file keeps an earlier one.
    return [replace(kept[row.method], row=row) for row in document["results"]]


@dataclass(frozen=True)
class Job:
    """What is to be validated, its model and data at hand.

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

    def run(self, progress: Progress) -> dict[str, Any]:
        """Do the job; ``validate.json`` is written after each method, the figures at the end.

        Rows of other methods in the file stay there, and one that tells more than the job's own, which
        failed. A failed prediction does not keep a method from its sweep, nor a failed sweep the other
        methods.

        Returns:
            What stands in ``validate.json`` of the job's own methods.

        Raises:
            RequestError: a method does not fit the model, the data cannot fill a batch, or the file holds
                results that would be lost.
            HessianLRError: the folder cannot be written.
        """
        check_batch_size(self.settings[0], self.data)
        path = self.out / VALIDATE_FILE
        damage = earlier(path, self._document([], [])).notes
        rows: list[ScoredRow] = []
        for index, setting in enumerate(self.settings, 1):
            progress.method(setting.method, index, len(self.settings))
            rows.append(self._validated(setting, progress))
            document = self._document(rows, damage)
            kept = write_joined(path, document)
        _draw(read_validated([path]), self.out)
        told = f"{path} keeps the row of an earlier call, which tells more"
        rows = [replace(row, notes=(told, *row.notes)) if row.method in kept else row for row in rows]
        return document | {"results": rows}

    def _validated(self, setting: Setting, progress: Progress) -> ScoredRow:
        """A row of ``validate.json``: the prediction, and the sweep that proves it."""
        work: dict[str, Any] = {"out": self.out, "engine": self.engine}
        measured = measure(setting, self.loaded, self.data, self.predicting, progress=progress, **work)
        failures = list(measured.failures)
        lr = measured.rates[self.predicting.predictor].lr
        asked: dict[str, Any] = {
            "start_lr": lr or _theory(setting, measured) or FALLBACK_LR,
            **{"lrs": self.lrs, "seeds": self.seeds, "out": self.out},
        }
        failed = False
        try:
            found = sweep(
                setting, self.loaded, self.data, progress=progress.sweep, engine=self.engine, **asked
            )
        except (HessianLRError, MemoryError) as error:
            failed = True
            failures.append(f"sweep failed: {reason(error)}")
            found = finished_runs(setting, self.loaded, self.data, **asked)
        return self._row(setting, measured, found, failures, failed=failed)

    def _row(
        self, setting: Setting, measured: Measured, found: Sweep, failures: Sequence[str], *, failed: bool
    ) -> ScoredRow:
        """The sweep, the score, and what ``calibrate`` and ``align`` need."""
        failed |= has_failed(measured, self.predicting)
        notes = [*measured.notes, *measured.prediction.notes, *found.notes, *failures]
        if rugged := chance(found.runs):
            notes.append(rugged)
        return ScoredRow(
            method=setting.method,
            status="failed" if failed else measured.prediction.status,
            notes=tuple(dict.fromkeys(notes)),
            **scored(found.runs, self.seeds, measured, self.predicting),
        )

    def _document(self, rows: Sequence[ScoredRow], notes: Sequence[str]) -> dict[str, Any]:
        return results.document(
            self.settings,
            rows,
            seeds=list(self.seeds),
            lrs="auto" if self.lrs is None else list(self.lrs),
            data_digest=self.data.digest,
            model_fingerprint=self.loaded.fingerprint,
            notes=[*self.data.notes, *notes],
        )


def _theory(setting: Setting, measured: Measured) -> float | None:
    """Where a search starts without a prediction: 2/λ for gradient descent."""
    curvature = measured.prediction.curvature
    return stability_bound(curvature) if setting.optimizer == SGD and curvature else None


def _draw(rows: Sequence[Validated], out: Path) -> None:
    """The two figures; what has no point on a logarithmic axis is left out."""
    if panels := [sweep_panel(one) for one in rows if one.row.runs]:
        save(sweep_figure(panels), out / "sweep.svg")
    if points := eigenvalue_points(rows):
        save(eigenvalue_figure(points), out / "eigenvalue.svg")
