"""Predict, sweep and score several methods, so that a killed job goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import results
from ..data import TaskData
from ..errors import HessianLRError, reason
from ..figures import eigenvalue_figure, sweep_figure
from ..figures.rows import eigenvalue_points, sweep_panel
from ..figures.style import save
from ..files import IDENTITIES, VALIDATE_FILE
from ..limits import check_batch_size
from ..models import LoadedModel
from ..overwriting import check_among_runs, check_overwriting, check_writable
from ..predict.classical import stability_bound
from ..progress import Progress, quiet_libraries
from ..results import Document
from ..rows import ScoredRow
from ..score import chance
from ..setting import SGD, Setting
from ..sweep import sweep
from ..sweep.engine import Engine
from ..sweep.runner import check_plan, finished_runs
from ..validated import Validated, read_validated, without_methods
from . import loading
from .joined import earlier, write_joined
from .measured import Measured, Predicting, has_failed, measure, scored
from .predicting import check_predictor, constants_for

# Where the search for the best learning rate starts if there is no prediction: a common default.
FALLBACK_LR = 3e-4


def validate(
    settings: Setting | Iterable[Setting],
    out: str | Path,
    *,
    predictor: str = "combined",
    calibration: str | Path | None = None,
    lrs: Iterable[float] | None = None,
    seeds: Iterable[int] = (0,),
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
        quiet: No progress bar, which a terminal shows, and a notebook that has ipywidgets.

    Returns:
        What was found of each setting, in their order. Where the folder keeps an earlier row instead, the
        first of the row's ``notes`` says so.

    Raises:
        RequestError: the settings do not go together, or do not fit their model or data; or the folder holds
            other results, which would be lost.
        HessianLRError: the model or the data cannot be loaded, or the folder cannot be written.
    """
    settings = [settings] if isinstance(settings, Setting) else list(settings)
    loading.check(settings)
    asked = checked(settings, out, predictor=predictor, calibration=calibration, lrs=lrs, seeds=seeds)
    with quiet_libraries(), Progress(quiet) as progress:
        loaded, data = loading.load(settings, quiet=quiet)
        document = Job(asked, loaded, data).run(progress)
    # As they are read from the file; a row may not be in it.
    same = (tuple(document.more[name] for name in IDENTITIES), asked.seeds, document.notes)
    common, file = without_methods(document.head["setting"]), asked.out / VALIDATE_FILE
    return [Validated(file, common, row, *same) for row in document.rows]


@dataclass(frozen=True)
class Asked:
    """What is to be validated, checked as far as is possible without the model.

    Attributes:
        settings: One a method, all else equal.
        out: Folder of everything that is written.
        seeds: Seeds of the runs, ascending.
        lrs: The learning rates to run, ascending; None: search around the prediction.
        predicting: How they are predicted.
    """

    settings: Sequence[Setting]
    out: Path
    seeds: tuple[int, ...]
    lrs: tuple[float, ...] | None
    predicting: Predicting


def checked(
    settings: Sequence[Setting],
    out: str | Path,
    *,
    predictor: str,
    calibration: str | Path | None,
    lrs: Iterable[float] | None,
    seeds: Iterable[int],
    called: str = "out",
    written: Sequence[tuple[str, str | None]] = (),
) -> Asked:
    """What ``validate`` is asked for, refused before anything is loaded where it can be.

    Args:
        settings: As ``loading.check`` has let them pass.
        out, predictor, calibration, lrs, seeds: As ``validate`` has them.
        called: What messages call ``out``.
        written: What else is written, as ``check_overwriting`` has it.

    Raises:
        RequestError: as ``validate``.
    """
    check_predictor(predictor, settings)
    seeded, rates = check_plan(settings[0], None if lrs is None else list(lrs), list(seeds))
    place, file = Path(out).expanduser(), None if calibration is None else str(calibration)
    check_writable(place, called, folder=True)
    places = [(called, str(place)), (called, str(place / VALIDATE_FILE)), *written]
    check_overwriting(places, [file], settings)
    check_among_runs(written, [place / "runs"])
    predicting = Predicting(predictor, constants_for(predictor, calibration), file)
    return Asked(settings, place, tuple(one.seed for one in seeded), rates, predicting)


@dataclass(frozen=True)
class Job:
    """What is to be validated, its model and data at hand.

    Attributes:
        asked: What it is.
        loaded, data: The settings' model and data.
        engine: Trains the runs; None: this process.
    """

    asked: Asked
    loaded: LoadedModel
    data: TaskData
    engine: Engine | None = None

    def run(self, progress: Progress) -> Document[ScoredRow]:
        """Do the job; ``validate.json`` is written after each method, the figures at the end.

        Rows of other methods in the file stay there, and one that tells more than the job's own, which
        failed. A failed prediction does not keep a method from its sweep, nor a failed sweep the other
        methods.

        Returns:
            What was found of the job's own methods; a row that is not in the file says so.

        Raises:
            RequestError: a method does not fit the model, the data cannot fill a batch, or the file holds
                results that would be lost.
            HessianLRError: the folder cannot be written.
        """
        asked, path = self.asked, self.asked.out / VALIDATE_FILE
        check_batch_size(asked.settings[0], self.data)
        damage = earlier(path, self._document([], []).to_dict()).notes
        rows: list[ScoredRow] = []
        for index, setting in enumerate(asked.settings, 1):
            progress.method(setting.method, index, len(asked.settings))
            rows.append(self._validated(setting, progress))
            document = self._document(rows, damage)
            absent = write_joined(path, document)
        _draw(read_validated([path]), asked.out)
        told = (
            replace(row, notes=(absent[row.method], *row.notes)) if row.method in absent else row
            for row in rows
        )
        return replace(document, rows=tuple(told))

    def _validated(self, setting: Setting, progress: Progress) -> ScoredRow:
        """A row of ``validate.json``: the prediction, and the sweep that proves it."""
        asked = self.asked
        work: dict[str, Any] = {"out": asked.out, "engine": self.engine}
        measured = measure(setting, self.loaded, self.data, asked.predicting, progress=progress, **work)
        failures = list(measured.failures)
        lr = measured.rates[asked.predicting.predictor].lr
        runs: dict[str, Any] = {
            "start_lr": lr or _theory(setting, measured) or FALLBACK_LR,
            **{"lrs": asked.lrs, "seeds": asked.seeds, "out": asked.out},
        }
        failed = has_failed(measured, asked.predicting)
        try:
            found = sweep(
                setting, self.loaded, self.data, progress=progress.sweep, engine=self.engine, **runs
            )
        except (HessianLRError, MemoryError) as error:
            failed = True
            failures.append(f"sweep failed: {reason(error)}")
            found = finished_runs(setting, self.loaded, self.data, **runs)
        notes = [*measured.notes, *measured.prediction.notes, *found.notes, *failures]
        if rugged := chance(found.runs):
            notes.append(rugged)
        return ScoredRow(
            method=setting.method,
            status="failed" if failed else measured.prediction.status,
            notes=tuple(dict.fromkeys(notes)),
            **scored(found.runs, asked.seeds, measured, asked.predicting),
        )

    def _document(self, rows: Sequence[ScoredRow], notes: Sequence[str]) -> Document[ScoredRow]:
        asked = self.asked
        return results.document(
            asked.settings,
            rows,
            (*self.data.notes, *notes),
            seeds=list(asked.seeds),
            lrs="auto" if asked.lrs is None else list(asked.lrs),
            data_digest=self.data.digest,
            model_fingerprint=self.loaded.fingerprint,
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
