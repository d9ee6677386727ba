"""What is known of a setting before it is trained, kept in a file of the folder; its row beside a sweep."""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import results
from ..atomic import write_bytes
from ..checkpoints import Checkpoints
from ..errors import HessianLRError, RequestError
from ..methods import method_of
from ..predict import Calibration, Prediction
from ..predict.classical import NONE, unpredicted
from ..predict.extent import EXTENT
from ..predict.law import Quantities
from ..predict.predictor import quantities
from ..predict.rate import FALLBACKS, PROBE, rate
from ..prepare import prepare, split_rows
from ..records import digest, read_json, write_sealed
from ..rows import NOTHING, Ends, RunRow, measurements
from ..score import judged
from ..setting import ADAMW, Setting
from ..sweep import RunResult
from ..sweep.run import precision_name
from .predicting import by_curvature
from .probe import probed

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel
    from ..progress import Progress
    from ..sweep.engine import Engine

UNKNOWN = Ends(None, None, None)

_NAME = "prediction-"  # a measurement's file


@dataclass(frozen=True)
class Predicting:
    """How settings are predicted beside their sweeps.

    Attributes:
        predictor: The one that is scored.
        constants: Its calibration.
        calibration_file: Where the constants are from; None: the package's.
    """

    predictor: str
    constants: Calibration
    calibration_file: str | None = None


@dataclass(frozen=True)
class Measured:
    """What is known of a setting before it is trained.

    Attributes:
        prediction: With all that was measured for it.
        quantities: What the predictors' laws take from it.
        rates: Each predictor's learning rate and the ends of its range; None where it has none.
        notes: What a reader should know of the rows and files.
        failures: Why a law gives no learning rate.
    """

    prediction: Prediction
    quantities: Quantities
    rates: Mapping[str, Ends]
    notes: tuple[str, ...]
    failures: tuple[str, ...]


def measure(
    setting: Setting,
    loaded: LoadedModel,
    data: TaskData,
    asked: Predicting,
    *,
    out: Path,
    progress: Progress,
    engine: Engine | None = None,
) -> Measured:
    """A setting's measurements, from their file in ``out`` if it is there, and what each law makes of them.

    Short runs are made where the predictor asks for them, by ``engine`` (None: this process).

    Raises:
        RequestError: the setting does not fit the model.
        HessianLRError: the folder cannot be written.
    """
    optimizer = method_of(setting).optimizer
    notes: list[str] = []
    if optimizer is not None:
        notes.append("λ at initialization knows nothing of this method's optimizer: no rate is read from it")
    prediction = _measured_once(setting, loaded, data, asked.constants, out, progress, notes)
    sample, _, rows_notes = split_rows(setting, data.train)
    known = quantities(
        prediction.adam,
        prediction.curvature,
        optimizer is not None or setting.optimizer != ADAMW,
        batch_size=setting.batch_size,
        steps=setting.steps,
        samples=len(sample),
        **{name: getattr(prediction, name) for name in EXTENT},
    )
    if asked.predictor == PROBE and setting.optimizer == ADAMW:
        prediction = probed(
            setting,
            loaded,
            data,
            prediction,
            asked.constants,
            out=out,
            progress=partial(progress.sweep, stage="short runs"),
            engine=engine,
        )
        known = replace(known, lr_probe=prediction.probe.lr if prediction.probe else None)
    rates, failures = rates_of_laws(known, asked.constants)
    return Measured(prediction, known, rates, (*rows_notes, *notes), failures)


def unmeasured(setting: Setting, asked: Predicting, reason: str) -> Measured:
    """What is known of a setting that could not be measured."""
    failed = Prediction.failed(asked.predictor, asked.constants.version, reason)
    known = Quantities(batch_size=setting.batch_size, steps=setting.steps)
    return Measured(failed, known, dict.fromkeys(FALLBACKS, UNKNOWN), (), ())


def rates_of_laws(known: Quantities, constants: Calibration) -> tuple[dict[str, Ends], tuple[str, ...]]:
    """Each predictor's learning rate and the ends of its range, None if it has none; why a law gives none."""
    rates: dict[str, Ends] = {}
    failures = []
    for name in FALLBACKS:
        found = None
        try:
            found = rate(name, constants, known)
        except HessianLRError as error:
            failures.append(str(error))
        rates[name] = Ends(*found.ends) if found else UNKNOWN
    return rates, tuple(failures)


def beside(measured: Measured | None, asked: Predicting | None) -> dict[str, Any]:
    """What a row says of a prediction beside its sweep; None where none was asked for."""
    if measured is None or asked is None:
        return NOTHING | {"predictor": None, "calibration": None}
    return {
        **measurements(measured.prediction),
        "samples": measured.quantities.samples,
        "predictor": asked.predictor if measured.prediction.predictor != NONE else None,
        "calibration": asked.constants.version,
        "calibration_file": asked.calibration_file,
        "predictions": {
            name: ends
            for name, ends in measured.rates.items()
            if name != PROBE or measured.quantities.lr_probe is not None
        },
    }


def scored(
    runs: Sequence[RunResult], seeds: Collection[int], measured: Measured | None, asked: Predicting | None
) -> dict[str, Any]:
    """What a ``ScoredRow`` says of a sweep: its runs, its score, and what was measured beside it."""
    ends = UNKNOWN if measured is None or asked is None else measured.rates[asked.predictor]
    return {
        **vars(judged(runs, seeds, ends.lr, ends.lr_low, ends.lr_high)),
        **beside(measured, asked),
        "runs": tuple(map(RunRow.of, runs)),
        "sweep_seconds": sum(run.seconds for run in runs) if runs else None,
    }


def has_failed(measured: Measured, asked: Predicting) -> bool:
    """Whether there is no learning rate where there should be one; of gradient descent there is none."""
    return measured.prediction.predictor != NONE and measured.rates[asked.predictor].lr is None


def bring(folders: Sequence[Path], out: Path) -> list[str]:
    """Copy the measurements that lie in other folders' results to ``out``, and say so in a note.

    Raises:
        HessianLRError: ``out`` cannot be written.
    """
    found = {path.name: path for folder in folders for path in sorted(folder.glob(f"{_NAME}*.json"))}
    new = [path for name, path in found.items() if not (out / name).exists()]
    for path in new:
        write_bytes(out / path.name, path.read_bytes())
    if not new:
        return []
    return [
        f"{len(new)} measurements brought along: `sweep --limit 0 --predictor NAME` has them in the table"
    ]


def _measured_once(
    setting: Setting,
    loaded: LoadedModel,
    data: TaskData,
    constants: Calibration,
    out: Path,
    progress: Progress,
    notes: list[str],
) -> Prediction:
    """The prediction from its file, or made and written."""
    # What "auto" is here: a folder may go on on another machine.
    named = setting.to_dict() | {"dtype": precision_name(setting)}
    identity = [named, data.digest, loaded.fingerprint, constants.to_dict()]
    identity.append(results.versions())  # the document's, so that they are true of all its numbers
    path = out / f"{_NAME}{digest(identity, 12)}.json"
    prediction = _read(path, identity, notes)
    if prediction is not None:
        return prediction
    prepared = prepare(setting, loaded, data)
    checkpoints = Checkpoints(out / "checkpoints", setting)
    how: dict[str, Any] = {"report": progress.report, "checkpoints": checkpoints}
    if setting.optimizer == ADAMW:
        prediction = by_curvature(setting, prepared, "combined", constants, **how)
    else:
        prediction = unpredicted(
            prepared.model,
            prepared.batches,
            dtype=prepared.dtype,
            seed=setting.seed,
            calibration=constants.version,
            **how,
        )
    notes += checkpoints.notes
    if prediction.status != "failed" and not checkpoints.unfinished:
        write_sealed(path, {"schema": 1, "identity": identity, "prediction": prediction})
        checkpoints.clear()
    del prepared
    gc.collect()  # the runs need the room of this copy of the model
    return prediction


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
