"""What ``validate`` and ``sweep`` wrote, read back: for figures, calibrations, transfer and reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .copies import once
from .errors import RequestError
from .files import IDENTITIES, SCHEMA, SWEEP_FILE, VALIDATE_FILE, files_of
from .methods import METHODS
from .predict.extent import EXTENT
from .predict.fit import Observation
from .predict.law import Quantities
from .records import digest, read_json
from .rows import ScoredRow, SweepRow
from .setting import ADAMW, Setting


@dataclass(frozen=True)
class Validated:
    """One method's row of a ``validate.json``, or of a ``sweep.json``.

    Attributes:
        file: The file it was read from.
        common: What of its setting all methods of its file share, as the file has it.
        row: The row itself: what was measured and predicted, the runs, and the score.
        contents: The digests that tell its data and its model; None where its file has none.
        seeds: Those of its runs, ascending.
        notes: What its file says of the data; ``row`` has its own.
    """

    file: Path
    common: dict[str, Any]
    row: ScoredRow
    contents: tuple[str | None, ...] = (None,) * len(IDENTITIES)
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name."""
        return self.row.method

    @property
    def setting(self) -> Setting:
        """The common setting with its method.

        Raises:
            RequestError: it is not one.
        """
        return Setting.from_dict({**self.common, "method": self.method})

    @property
    def name(self) -> str:
        """What it is called in a message: what tells it from the others of its file, and the file."""
        return f"{self.row.name} of {self.file}"

    @property
    def identity(self) -> str:
        """A short hash of what decides the numbers, but for which learning rates and how many seeds were run.

        Where the digests tell data and model, their names do not matter.

        Raises:
            RequestError: the setting is not one.
        """
        try:
            setting = self.setting
        except RequestError as error:
            raise RequestError(f"{self.file}: {error}") from error
        values = setting.training_identity(contents=None in self.contents) | {"samples": setting.samples}
        values["seed"] = min(self.seeds, default=setting.seed)
        return digest([values, self.contents])

    @property
    def told(self) -> tuple[int, int]:
        """How much it tells: whether it has a curvature, and how many runs."""
        return int(self.is_measured), len(self.row.runs)

    @property
    def is_measured(self) -> bool:
        """Whether it has a curvature."""
        return self.row.lambda_max is not None or self.row.lr_stability is not None


def read_validated(paths: str | Path | Iterable[str | Path]) -> list[Validated]:
    """The rows of all methods in a file of ``validate`` or ``sweep``, a folder that holds some, or several.

    Settings of a sweep that have no runs yet are left out.

    Raises:
        RequestError: there is no such file, or it is not what these commands wrote.
    """
    files = files_of(paths)
    rows: list[Validated] = []
    for file in files:
        found = read_json(file)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise RequestError(f"{file} is not a {VALIDATE_FILE} or {SWEEP_FILE} of schema {SCHEMA}")
        try:
            if "varying" in found:
                swept = map(SweepRow.from_dict, found["results"])
                rows += [swept_row(file, row, found.get("notes") or ()) for row in swept if row.runs]
            else:
                rows += [validated_row(file, found, row) for row in found["results"]]
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(
                f"{file} is not what `hessian-lr validate` or `sweep` writes: {type(error).__name__} {error}"
            ) from error
    return rows


def read_measured(paths: Sequence[str | Path]) -> list[Validated]:
    """As ``read_validated``, once it is known that any row has a curvature.

    Raises:
        RequestError: none has, or as ``read_validated``.
    """
    return require_measured(read_validated(paths))


def require_measured(rows: list[Validated]) -> list[Validated]:
    """The rows, once it is known that any has a curvature.

    Raises:
        RequestError: none has.
    """
    if not any(one.is_measured for one in rows):
        raise RequestError(
            "none of these results has a curvature; a sweep's folder gets it, and trains nothing again, from "
            "`hessian-lr sweep FILE.yaml --out DIR --limit 0 --predictor combined`"
        )
    return rows


def observation(one: Validated) -> Observation | None:
    """What a calibration can learn from a row: None if its best learning rate is unknown, or not AdamW's.

    λ at initialization is left out where the method has an optimizer of its own: as for a prediction, no rate
    is read from it.
    """
    if one.row.best_lr is None or one.row.censored or one.common.get("optimizer", ADAMW) != ADAMW:
        return None
    names = ("model", "data", "rank", "alpha", "batch_size", "steps", "seed")
    try:
        source = ", ".join(f"{name} {one.common[name]}" for name in names)
        batch_size, steps = int(one.common["batch_size"]), int(one.common["steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{one.file}: its setting lacks what a calibration needs ({error})") from error
    # The data may have had fewer rows than were asked for; earlier versions tell only these.
    asked = one.common.get("samples")
    samples = one.row.samples or (asked if isinstance(asked, int) else None)
    own = one.method in METHODS and METHODS[one.method].optimizer is not None
    return Observation(
        identity=one.identity,
        source=f"{one.file.parent.name}: {source}",
        method=one.method,
        best_lr=one.row.best_lr,
        quantities=Quantities(
            batch_size=batch_size,
            steps=steps,
            lr_stability=one.row.lr_stability,
            lr_critical_start=one.row.lr_critical_start,
            lr_eigenvalue=None if own else one.row.lr_eigenvalue,
            lr_sharpness=None if own else one.row.lr_sharpness,
            lr_probe=one.row.lr_probe,
            samples=samples,
            **{name: getattr(one.row, name) for name in EXTENT},
        ),
    )


def each_once(rows: Sequence[Validated]) -> tuple[list[Validated], list[str]]:
    """Of each setting the row with a curvature and the most runs, and a note on each that was found again."""
    return once(
        rows,
        key=lambda one: one.identity,
        told=lambda one: (one.told,),  # as one: runs without a curvature teach nothing here
        name=lambda one: one.name,
    )


def observations(rows: Sequence[Validated]) -> tuple[list[Observation], list[str]]:
    """What a calibration can learn from rows, each setting once, and a note on each that was found again.

    Raises:
        RequestError: a row lacks what a calibration needs.
    """
    counted, notes = each_once(rows)
    return list(filter(None, map(observation, counted))), notes


def best_learning_rates(rows: Sequence[Validated]) -> list[tuple[Setting, float]]:
    """Each row's setting with its best learning rate, of those where it lies inside the sweep.

    Raises:
        RequestError: a row's setting is not one.
    """
    found = []
    for one in rows:
        if one.row.best_lr is not None and not one.row.censored:
            found.append((one.setting, one.row.best_lr))
    return found


def without_best(rows: Iterable[Validated]) -> Iterator[tuple[Setting, str]]:
    """Each other row's setting, of those that have runs, with the reason and what to do.

    Raises:
        RequestError: a row's setting is not one.
    """
    for one in rows:
        if one.row.censored:
            yield (
                one.setting,
                "its best learning rate lies at the edge of its sweep: run more learning rates",
            )
        elif one.row.best_lr is None and one.row.runs:
            yield one.setting, "no learning rate of its sweep lowered the held-out loss: run others"


def validated_row(file: Path, whole: dict[str, Any], row: dict[str, Any]) -> Validated:
    """A row of ``whole``, what stands in ``file``.

    Raises:
        RequestError: a field is missing or of the wrong kind.
        KeyError: the setting is missing.
    """
    setting = whole["setting"]
    if not isinstance(setting, dict):
        raise RequestError(f"the setting of {file} is not an object")
    found = (SweepRow if "varying" in whole else ScoredRow).from_dict(row)
    contents = tuple(whole.get(name) for name in IDENTITIES)
    seeds = tuple(sorted({run.seed for run in found.runs}))
    return Validated(file, without_methods(setting), found, contents, seeds, tuple(whole.get("notes") or ()))


def swept_row(file: Path, row: SweepRow, notes: Iterable[str]) -> Validated:
    """A row of ``sweep.json``, what stands in ``file`` with ``notes``."""
    common = {**row.setting, "seed": min(row.seeds)}
    del common["method"]
    contents = (row.data_digest, row.model_fingerprint)
    seeds = tuple(sorted({run.seed for run in row.runs}))
    return Validated(file, common, row, contents, seeds, tuple(notes))


def without_methods(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A document's setting, but for the methods of its rows."""
    return {name: value for name, value in setting.items() if name != "methods"}
