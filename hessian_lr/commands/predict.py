"""The command that predicts: from curvature, from short runs as well, or from a setting that was swept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import job
from ..errors import RequestError
from ..overwriting import check_overwriting, check_writable
from ..setting import Setting
from . import options
from .options import Output

if TYPE_CHECKING:
    from ..rows import PredictionRow
    from .session import Turn


def predict(
    settings: list[Setting],
    output: Output,
    predictor: Annotated[str | None, options.PREDICTOR] = None,
    calibration: options.Calibrated = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="λ between two ends from the structure at B = 0 (eigenvalue; plain LoRA).",
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

    from .. import results
    from ..predict import Prediction
    from ..prepare import split_rows
    from ..rows import PredictionRow
    from ..study.predicting import constants_for, predict_loaded, transfer
    from . import session, tables

    constants = constants_for(predictor, calibration)
    asked: dict[str, Any] = {"fast": fast, "calibration_file": calibration}
    if source:
        asked["sources"] = tuple(source)
        moved = [transfer(setting, source, calibration=calibration) for setting in settings]
        rows = [
            PredictionRow.of(one.method, found, **asked) for one, found in zip(settings, moved, strict=True)
        ]
        return session.tell(results.document(settings, rows, ()), output, tables.predict_table)

    def work(turn: Turn) -> PredictionRow:
        setting = turn.setting
        prediction = predict_loaded(
            setting,
            turn.loaded,
            turn.data,
            predictor,
            constants,
            progress=turn.progress,
            checkpoints=turn.checkpoints,
            runs=checkpoint,
            fast=fast,
        )
        sample, _, _ = split_rows(setting, turn.data.train)
        return PredictionRow.of(setting.method, prediction, samples=len(sample), **asked)

    def failed(setting: Setting, reason: str) -> PredictionRow:
        prediction = Prediction.failed(predictor, constants.version, reason)
        return PredictionRow.of(setting.method, prediction, **asked)

    return session.each_method(settings, output, work, failed, tables.predict_table, checkpoint)


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
    from ..study.predicting import check_predictor
    from .spectra import FAST

    refuse_unpredicted(settings[0])
    check_predictor(predictor, settings)
    if predictor == PROBE and job.launched():
        raise RequestError(f"--predictor {PROBE} trains short runs, in one process: run it without torchrun")
    if fast and predictor != "eigenvalue":
        raise RequestError(
            "--fast is for --predictor eigenvalue, which measures where B = 0; add it or leave --fast out"
        )
    if fast and (others := [s.method for s in settings if not s.peft_config and s.method not in FAST]):
        raise RequestError(
            f"--fast is for {' and '.join(FAST)}, whose λ has a closed form; {', '.join(others)} needs "
            "Lanczos: leave --fast out"
        )
    if checkpoint is not None and fast:
        raise RequestError(
            "--checkpoint keeps the state of Lanczos, which --fast does without: leave one of them out"
        )
    if checkpoint is not None:
        check_writable(checkpoint, "--checkpoint", folder=True)
