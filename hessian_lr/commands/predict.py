"""The command that predicts: from curvature, from short runs as well, or from a setting that was swept."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import job
from ..errors import RequestError, unknown_name
from ..setting import AUTO, Setting
from . import options
from .options import Output
from .overwriting import check_overwriting

if TYPE_CHECKING:
    from ..predict import Calibration
    from .session import Turn

Row = dict[str, Any]


def predict(
    settings: list[Setting],
    output: Output,
    predictor: Annotated[str | None, options.PREDICTOR] = None,
    calibration: options.Calibrated = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="λ between two ends from the structure at B = 0 (eigenvalue; lora, rslora).",
        ),
    ] = False,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="RUN",
            parser=options.expanded,
            help="From a setting of this model that `validate` swept, without measuring; may be repeated.",
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
) -> int:
    """Predict a run's learning rate, with a range."""
    if source:
        _refuse_measuring(predictor=predictor, fast=fast, checkpoint=checkpoint)
    predictor = predictor or "combined"
    _check(settings, predictor, fast=fast, checkpoint=checkpoint)
    written = [("--checkpoint", checkpoint), ("--json", output.json)]
    check_overwriting(written, [calibration, *(source or ())], settings)

    from .. import results, validated
    from ..limits import check_batch_size
    from ..predict import Prediction
    from ..predict.rate import PROBE
    from ..predict.transfer import transfer
    from ..prepare import prepare
    from . import session, tables
    from .measured import predict_prepared
    from .probe import probed

    constants = constants_for(predictor, calibration)
    asked = {"samples": None, "fast": fast, "from": source or None, "calibration_file": calibration}
    if source:
        measured = validated.best_learning_rates(validated.read_validated(source))
        rows = [
            results.prediction_row(
                setting.method,
                Prediction.transferred(constants.version, transfer(constants.transfer, measured, setting)),
            )
            | asked
            for setting in settings
        ]
        return session.tell(results.document(settings, rows, notes=[]), output, tables.predict_table)

    def work(turn: Turn) -> Row:
        setting, progress = turn.setting, turn.progress
        check_batch_size(setting, turn.data)
        prepared = prepare(setting, turn.loaded, turn.data)
        prediction = predict_prepared(
            setting,
            prepared,
            "adam" if predictor == PROBE else predictor,
            constants,
            fast=fast,
            report=progress.report,
            checkpoints=turn.checkpoints,
        )
        notes, samples = prepared.notes, len(prepared.batches)
        if predictor == PROBE:
            del prepared
            gc.collect()  # the runs need the room of this copy of the model
            with _kept(checkpoint) as folder:
                prediction = probed(
                    setting,
                    turn.loaded,
                    turn.data,
                    prediction,
                    constants,
                    out=Path(folder),
                    progress=partial(progress.sweep, stage="short runs"),
                )
        row = results.prediction_row(setting.method, prediction) | asked
        return row | {"samples": samples, "notes": [*notes, *row["notes"]]}

    def failed(setting: Setting, reason: str) -> Row:
        prediction = Prediction.failed(predictor, constants.version, reason)
        return results.prediction_row(setting.method, prediction) | asked

    return session.each_method(settings, output, work, failed, tables.predict_table, checkpoint)


def check_predictor(predictor: str, settings: Sequence[Setting]) -> None:
    """Refuse a predictor that there is not, or that these settings cannot have.

    Raises:
        RequestError: names it, and the likely mend.
    """
    from ..predict.rate import FALLBACKS, PROBE
    from ..predict.refine import shorter

    if predictor not in FALLBACKS:
        raise unknown_name("predictor", predictor, FALLBACKS)
    if predictor == PROBE:
        shorter(settings[0])
    if settings[0].samples == AUTO:
        raise RequestError("--samples auto is for `hessian-lr spectrum`; give a number here")


def constants_for(predictor: str, calibration: str | None) -> Calibration:
    """The constants of a file, or the package's.

    Raises:
        RequestError: they are none, or have no law for the predictor.
    """
    from ..predict import load_calibration
    from ..predict.rate import PROBE
    from ..predict.refine import probe_law

    constants = load_calibration(calibration)
    if predictor == PROBE:
        probe_law(constants)
    return constants


def _refuse_measuring(**given: object) -> None:
    """Refuse, beside ``--from``, options that say how to measure."""
    for name, value in given.items():
        if value:
            raise RequestError(
                f"--{name} is for what is measured, and --from measures nothing: leave one of them out"
            )


def _check(
    settings: Sequence[Setting],
    predictor: str,
    *,
    fast: bool,
    checkpoint: str | None,
) -> None:
    from ..predict.law import refuse_unpredicted
    from ..predict.rate import PROBE
    from .spectra import BRACKETED

    refuse_unpredicted(settings[0])
    check_predictor(predictor, settings)
    if predictor == PROBE and job.launched():
        raise RequestError(f"--predictor {PROBE} trains short runs, in one process: run it without torchrun")
    if fast and predictor != "eigenvalue":
        raise RequestError(
            "--fast is for --predictor eigenvalue, which measures where B = 0; add it or leave --fast out"
        )
    if fast and (others := [s.method for s in settings if s.method not in BRACKETED]):
        raise RequestError(
            f"--fast is for {' and '.join(BRACKETED)}, whose λ has a closed form; {', '.join(others)} "
            "needs Lanczos: leave --fast out"
        )
    if checkpoint is not None and fast:
        raise RequestError(
            "--checkpoint keeps the state of Lanczos, which --fast does without: leave one of them out"
        )
    if checkpoint is not None:
        options.check_writable(checkpoint, "--checkpoint", folder=True)


def _kept(checkpoint: str | None) -> AbstractContextManager[str]:
    """Where short runs are kept: beside the state of Lanczos, or nowhere for long."""
    return TemporaryDirectory(prefix="hessian-lr-") if checkpoint is None else nullcontext(checkpoint)
