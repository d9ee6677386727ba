"""What the pictures show of results that were read back."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RequestError
from ..files import RUN
from ..sweep import RunResult, Sweep
from ..validated import Validated
from .eigenvalue import EigenvaluePoint
from .sweep import SweepPanel


def sweep_panel(one: Validated) -> SweepPanel:
    """A row's runs as a panel of the picture of sweeps; what a row does not keep of a run is left empty.

    Raises:
        RequestError: the setting or a run is not what ``validate`` writes.
        KeyError: a run lacks a field.
    """
    setting = one.setting
    runs = []
    for run in one.row["runs"]:
        seeded = {**setting.to_dict(), "seed": run["seed"]}
        kept = {name: run[name] for name in RUN}
        runs.append(RunResult.from_dict({**kept, "key": "", "setting": seeded, "train_tokens": 0}))
        if not runs[-1].lr > 0:
            raise RequestError(f"a learning rate of {one.method} is {runs[-1].lr}; it must be positive")
    ordered = tuple(sorted(runs, key=lambda run: (run.lr, run.setting.seed)))
    return SweepPanel(Sweep(setting, ordered, one.score.censored), one.score)


def eigenvalue_points(rows: Sequence[Validated]) -> list[EigenvaluePoint]:
    """The rows that have a place in the picture: a positive λ and a best learning rate.

    Raises:
        RequestError: λ or an end of its bar is not a number.
    """
    points = []
    for one in rows:
        value, *ends = map(one.number, ("lambda_max", "lambda_lower", "lambda_upper", "sampling_error"))
        if value is not None and value > 0 and one.score.best_lr is not None:
            points.append(EigenvaluePoint(one.method, value, *error_bar(value, *ends), one.score))
    return points


def error_bar(
    value: float, lower: float | None, upper: float | None, sampling_error: float | None
) -> tuple[float | None, float | None]:
    """Ends of λ's bar: the bounds, and the sampling error where that reaches further."""
    error = sampling_error or 0.0
    low = min(value - error, value if lower is None else lower)
    high = max(value + error, value if upper is None else upper)
    return (low if low > 0 else None), high
