"""What the pictures show of results that were read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..sweep import RunResult, Sweep
from ..validated import Validated
from .eigenvalue import EigenvaluePoint
from .sweep import SweepPanel


def sweep_panel(one: Validated, title: str | None = None) -> SweepPanel:
    """A row's runs as a panel of the picture of sweeps; what a row does not keep of a run is left empty.

    Args:
        one: The row.
        title: What the panel is called; None: by its method.

    Raises:
        RequestError: the setting or a run is not what ``validate`` writes.
    """
    setting = one.setting
    runs = []
    for run in one.row.runs:
        seeded = replace(setting, seed=run.seed)
        # Files of earlier versions name neither key nor tokens.
        own: dict[str, Any] = {"setting": seeded, "key": run.key or "", "train_tokens": run.train_tokens or 0}
        runs.append(RunResult(**{name: value for name, value in vars(run).items() if name != "seed"} | own))
    ordered = tuple(sorted(runs, key=lambda run: (run.lr, run.setting.seed)))
    return SweepPanel(Sweep(setting, ordered, one.row.censored), one.row.score, title)


def eigenvalue_points(rows: Sequence[Validated]) -> list[EigenvaluePoint]:
    """The rows that have a place in the picture: a positive λ and a best learning rate."""
    points = []
    for one in rows:
        row = one.row
        if row.lambda_max is not None and row.lambda_max > 0 and row.best_lr is not None:
            ends = error_bar(row.lambda_max, row.lambda_lower, row.lambda_upper, row.sampling_error)
            points.append(EigenvaluePoint(one.method, row.lambda_max, *ends, row.score))
    return points


def error_bar(
    value: float, lower: float | None, upper: float | None, sampling_error: float | None
) -> tuple[float | None, float | None]:
    """Ends of λ's bar: the bounds, and the sampling error where that reaches further."""
    error = sampling_error or 0.0
    low = min(value - error, value if lower is None else lower)
    high = max(value + error, value if upper is None else upper)
    return (low if low > 0 else None), high
