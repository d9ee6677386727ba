"""What else might stand in 38/λ_P's place: measured in the small models' settings; the laws made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from hessian_lr.curvature.adam import stability_threshold
from hessian_lr.prepare import Prepared, prepare
from hessian_lr.setting import BETAS

from .again import again
from .laws import AFTER, SETTING, SHARE, THEORY, Law
from .price import bench
from .run import Loader
from .settings import LARGE
from .table import setting_of

THRESHOLD = stability_threshold(BETAS[0])
LAWS_OF_IT = (
    Law("38 / it", {"lr_of_it": THEORY}),
    Law("it, critical", {"lr_of_it": THEORY, "critical_over_it": SHARE} | SETTING),
    Law(
        "it, critical, eigenvalue",
        {"lr_eigenvalue": THEORY, "critical_over_eigenvalue": SHARE, "it_over_eigenvalue": SHARE} | SETTING,
    ),
)
#: Records of a setting, at its start, from its row of the bench's table.
Measure = Callable[[Prepared, dict[str, Any]], Iterable[dict[str, Any]]]


def small_again(
    description: str, file: Path, measure: Measure, report: Callable[[pd.DataFrame], None]
) -> None:
    """``again`` in float32 for the small models' settings with a λ_P; ``report`` gets the bench's table."""
    table = bench()
    small = table[(table["model"] != LARGE) & (table[AFTER + "lr_stability"] > 0)].sort_values("key")
    settings = {
        row["key"]: (row["key"], partial(_in_float32, measure, row)) for row in small.to_dict("records")
    }
    again(description, file, settings, partial(report, table))


def _in_float32(measure: Measure, row: dict[str, Any], loader: Loader) -> Iterable[dict[str, Any]]:
    # As for ``price``: bfloat16 is slow where the processor lacks it.
    setting = replace(setting_of(row), dtype="float32")
    return measure(prepare(setting, *loader(setting)), row)


def with_it(table: pd.DataFrame, found: pd.Series) -> pd.DataFrame:
    """The settings with 38 over what was found of each, by key, where that is positive."""
    lr = THRESHOLD / table["key"].map(found)
    table = table.assign(
        lr_of_it=lr,
        critical_over_it=table["lr_critical_start"] / lr,
        it_over_eigenvalue=lr / table["lr_eigenvalue"],
    )
    return table[lr > 0].reset_index(drop=True)
