"""The learning rate of a run that a setting describes: by curvature, by short runs too, or from others."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..checkpoints import Checkpoints
from ..data import TaskData
from ..errors import RequestError, unknown_name
from ..limits import check_batch_size
from ..methods import method_of
from ..models import LoadedModel
from ..overwriting import check_overwriting, check_writable
from ..predict import Calibration, Prediction, load_calibration, predict_learning_rate
from ..predict.law import refuse_unpredicted
from ..predict.rate import FALLBACKS, PROBE
from ..predict.refine import probe_law, shorter
from ..predict.transfer import transfer as moved
from ..prepare import Prepared, prepare
from ..progress import Progress, quiet_libraries
from ..setting import AUTO, Setting
from ..validated import best_learning_rates, read_validated, without_best
from . import loading
from .probe import probed


def predict(
    setting: Setting,
    *,
    predictor: str = "combined",
    calibration: str | Path | None = None,
    checkpoint: str | Path | None = None,
    quiet: bool = False,
) -> Prediction:
    """Predict the learning rate of the run that ``setting`` describes, as ``hessian-lr predict`` does.

    Args:
        setting: The run: model, data, method, length.
        predictor: ``"combined"``, ``"adam"``, ``"eigenvalue"`` or ``"probe"``, which trains a few runs a
            tenth as long besides.
        calibration: File of constants that ``hessian-lr calibrate`` wrote; None: the package's.
        checkpoint: Folder for the state of Lanczos and the short runs, from which the same call goes on after
            a kill; None: none is kept.
        quiet: No progress bar, which a terminal shows, and a notebook that has ipywidgets.

    Returns:
        The prediction. Where no learning rate follows from what was measured, its ``status`` is ``"failed"``
        and the last of its ``notes`` says why.

    Raises:
        RequestError: the setting has no prediction, or does not fit its model or data.
        HessianLRError: the model or the data cannot be loaded, or the measurement ran out of memory.
    """
    refuse_unpredicted(setting)
    check_predictor(predictor, [setting])
    loading.check([setting])
    constants = constants_for(predictor, calibration)
    if checkpoint is not None:
        checkpoint = Path(checkpoint).expanduser()
        check_writable(checkpoint, "checkpoint", folder=True)
        check_overwriting(
            [("checkpoint", str(checkpoint))], [None if calibration is None else str(calibration)], [setting]
        )
    kept = None if checkpoint is None else Checkpoints(checkpoint, setting)
    with quiet_libraries(), Progress(quiet) as progress:
        loaded, data = loading.load([setting], quiet=quiet)
        progress.method(setting.method, 1, 1)
        found = predict_loaded(
            setting, loaded, data, predictor, constants, progress=progress, checkpoints=kept, runs=checkpoint
        )
    if kept is not None:
        found = replace(found, notes=(*found.notes, *kept.notes))
        if found.status != "failed":
            kept.clear()
    return replace(found, notes=(*data.notes, *found.notes))


def predict_loaded(
    setting: Setting,
    loaded: LoadedModel,
    data: TaskData,
    predictor: str,
    constants: Calibration,
    *,
    progress: Progress,
    checkpoints: Checkpoints | None,
    runs: str | Path | None,
    fast: bool = False,
) -> Prediction:
    """The prediction of a setting whose model and data are loaded.

    Args:
        setting, loaded, data: The run, its model and its data.
        predictor, constants: How it is predicted.
        progress: Shows how it goes on.
        checkpoints: Where the state of Lanczos is kept; None: nowhere.
        runs: Folder of short runs; None: they are kept nowhere.
        fast: As ``predict_learning_rate`` has it.

    Raises:
        RequestError: the method does not fit the model, or the batch size the data.
        HessianLRError: out of memory.
    """
    check_batch_size(setting, data)
    prepared = prepare(setting, loaded, data)
    measured = "adam" if predictor == PROBE else predictor
    how: dict[str, Any] = {"fast": fast, "report": progress.report, "checkpoints": checkpoints}
    found = by_curvature(setting, prepared, measured, constants, **how)
    notes = prepared.notes
    if predictor == PROBE:
        del prepared
        gc.collect()  # the runs need the room of this copy of the model
        with _runs_folder(runs) as folder:
            found = probed(
                setting,
                loaded,
                data,
                found,
                constants,
                out=Path(folder),
                progress=partial(progress.sweep, stage="short runs"),
            )
    return replace(found, notes=(*notes, *found.notes))


def by_curvature(
    setting: Setting, prepared: Prepared, predictor: str, constants: Calibration, **how: Any
) -> Prediction:
    """``predict_learning_rate`` of a setting's own model, rows and numbers; ``how`` goes on to it."""
    return predict_learning_rate(
        prepared.model,
        prepared.batches,
        warmup_batches=prepared.warmup_batches,
        predictor=predictor,
        steps=setting.steps,
        batch_size=setting.batch_size,
        dtype=prepared.dtype,
        calibration=constants,
        seed=setting.seed,
        optimizer=method_of(setting).optimizer,
        **how,
    )


def transfer(
    setting: Setting, runs: str | Path | Iterable[str | Path], *, calibration: str | Path | None = None
) -> Prediction:
    """Predict from settings of the same model whose best learning rate is known; nothing is measured.

    Args:
        setting: The run to predict.
        runs: A folder that ``validate`` or ``sweep`` wrote, or its JSON; or several. A model on disk is known
            again by its path.
        calibration: As ``predict`` has it.

    Raises:
        RequestError: none of ``runs`` tells of the setting's model, or a file is not what those wrote.
    """
    constants, rows = load_calibration(calibration), read_validated(runs)
    found = moved(constants.transfer, best_learning_rates(rows), setting, without_best(rows))
    return Prediction.transferred(constants.version, found)


def check_predictor(predictor: str, settings: Sequence[Setting]) -> None:
    """Refuse a predictor that there is not, or that these settings cannot have.

    Raises:
        RequestError: names it, and the likely mend.
    """
    if predictor not in FALLBACKS:
        raise unknown_name("predictor", predictor, FALLBACKS)
    if predictor == PROBE:
        shorter(settings[0])
    if settings[0].samples == AUTO:
        raise RequestError("samples 'auto' is for `hessian-lr spectrum`; give a number here")


def constants_for(predictor: str, calibration: str | Path | None) -> Calibration:
    """The constants of a file, or the package's.

    Raises:
        RequestError: they are none, or have no law for the predictor.
    """
    constants = load_calibration(calibration)
    if predictor == PROBE:
        probe_law(constants)
    return constants


def _runs_folder(runs: str | Path | None) -> AbstractContextManager[str | Path]:
    """Where short runs are kept: in their folder, or nowhere for long."""
    return TemporaryDirectory(prefix="hessian-lr-") if runs is None else nullcontext(runs)
