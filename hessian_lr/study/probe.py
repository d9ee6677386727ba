"""Short runs around a prediction, and the prediction they make with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ..digits import rate
from ..errors import HessianLRError, reason
from ..predict import Calibration, Prediction, refine_learning_rate
from ..predict.prediction import Probe
from ..predict.rate import PROBE
from ..predict.refine import shorter, start
from ..score import Score, score
from ..setting import Setting
from ..sweep import Sweep, sweep

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel
    from ..sweep import Progress
    from ..sweep.engine import Engine


def probed(
    setting: Setting,
    loaded: LoadedModel,
    data: TaskData,
    prediction: Prediction,
    constants: Calibration,
    *,
    out: Path,
    progress: Progress,
    engine: Engine | None = None,
) -> Prediction:
    """The prediction joined with runs a tenth as long, which start where λ_P expects their best.

    Usually three or four runs. Where they tell nothing, the prediction stays curvature's, with a note of why.

    Args:
        setting: The run that is predicted.
        loaded, data: Its model and data.
        prediction: By curvature, with λ_P.
        constants: Those that ``prediction`` was made with.
        out: Folder of the short runs' files; what is there is not repeated.
        progress: See ``sweep.Progress``.
        engine: Trains the runs; None: this process.

    Raises:
        RequestError: the run is too short to have a tenth, or the constants have no law for this.
    """
    short = shorter(setting)
    if prediction.status == "failed" or prediction.adam is None:
        return _told(prediction, "no short runs, for want of the sharpness in Adam's geometry")
    try:
        found = sweep(
            short,
            loaded,
            data,
            start_lr=start(prediction, constants, steps=setting.steps, batch_size=setting.batch_size),
            stride=1,
            seeds=(setting.seed,),
            out=out,
            progress=progress,
            engine=engine,
        )
    except (HessianLRError, MemoryError) as error:
        return _told(prediction, f"no short runs: {reason(error)}")
    scored = score(found, None, None, None)
    probe = _summary(found, scored)
    # A forward pass is half a gradient; the loss is held out once before, and after each run.
    held_out = len(data.heldout) * (1 + len(found.runs))
    rows = short.batch_size * sum(run.steps for run in found.runs) + 0.5 * held_out
    prediction = dataclasses.replace(
        prediction,
        probe=probe,
        gradient_equivalents=round(prediction.gradient_equivalents + rows / setting.most_samples, 3),
        seconds=round(prediction.seconds + probe.seconds, 3),
        notes=(*prediction.notes, *found.notes),
    )
    runs = f"{len(probe.lrs)} runs of {probe.steps} steps"
    if scored.best_lr is None:
        return _told(prediction, f"not joined with short runs: none of {runs} lowered the held-out loss")
    if probe.lr is None:
        return _told(prediction, f"the best learning rate of {runs} lies outside those that were run")
    try:
        joined = refine_learning_rate(
            prediction, probe.lr, steps=setting.steps, batch_size=setting.batch_size, calibration=constants
        )
    except HessianLRError as error:
        return _told(prediction, f"not joined with {runs}: {reason(error)}")
    return _told(joined, f"joined with {runs}, best at {rate(probe.lr)}")


def _summary(found: Sweep, scored: Score) -> Probe:
    return Probe(
        lr=None if scored.censored else scored.best_lr,
        steps=found.setting.steps,
        lrs=tuple(run.lr for run in found.runs),
        losses=tuple(run.final_loss for run in found.runs),
        seconds=round(sum(run.seconds for run in found.runs), 3),
    )


def _told(prediction: Prediction, note: str) -> Prediction:
    """The prediction as one that was asked for with short runs, and what became of these."""
    return dataclasses.replace(prediction, predictor=PROBE, notes=(*prediction.notes, note))
