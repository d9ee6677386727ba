"""Warm-ups that never go beyond the edge of stability: `python -m experiments.lr_bench.smaller`.

The package makes a warm-up smaller where its own learning rate was more than four times 38/λ_P. Here every
setting whose was more than once 38/λ_P is measured again, after warm-ups made smaller until it is not, on all
the rows it had. Laws fitted to that are held against those of the bench, whose warm-ups were of any size.
``results/smaller.csv`` has the measurements, ``smaller.json`` what they come to; ``--report``: no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.measure.preconditioned import WARMUP_SHARE
from hessian_lr.prepare import prepare
from hessian_lr.records import write_json

from .again import again
from .edge import judged
from .laws import AFTER, LAWS, derived
from .measure import after_warm_ups
from .price import bench
from .run import Loader
from .table import HERE, PROBE, setting_of

FILE = HERE / "smaller.csv"
TRIED = (math.inf, 4, 1)
JUDGED = ("38 / lambda_P", "adam", "combined", PROBE)


def share(table: pd.DataFrame) -> pd.Series:
    """η·λ_P/38 after each warm-up to η, a share of η_c."""
    return table["lr_critical_start"] * WARMUP_SHARE / table[AFTER + "lr_stability"]


def with_smaller(table: pd.DataFrame, found: pd.DataFrame, beyond: float) -> pd.DataFrame:
    """The settings with 38/λ_P after smaller warm-ups where those to a share of η_c were so far beyond it."""
    anew = table["key"].map(found.set_index("key")[AFTER + "lr_stability"])
    name = AFTER + "lr_stability"
    return derived(table.assign(**{name: anew.where(share(table) > beyond, table[name])}))


def remeasure(row: dict[str, Any], loader: Loader) -> Iterator[dict[str, Any]]:
    """What warm-ups change of a row of the bench's table."""
    setting = setting_of(row)
    prepared = prepare(setting, *loader(setting))
    operator = HessianOperator(prepared.model, prepared.batches, dtype=prepared.dtype)
    top_lr = row["lr_critical_start"] * WARMUP_SHARE
    yield after_warm_ups(prepared, top_lr, operator.gradient(), beyond=1.0)


def findings(table: pd.DataFrame, found: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each law and bound on η·λ_P/38: errors with a method, and a model, left out."""
    laws = {law.name: law for law in LAWS}
    return [
        {"beyond": None if math.isinf(beyond) else beyond, "changed": int((share(table) > beyond).sum())}
        | judged(with_smaller(table, found, beyond), laws[name])
        for name in JUDGED
        for beyond in TRIED
    ]


def report(table: pd.DataFrame) -> None:
    """Print what ``results/smaller.csv`` says, and keep it beside that."""
    rows = findings(table, pd.read_csv(FILE))
    write_json(FILE.with_suffix(".json"), {"schema": 1, "rows": rows})
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


def main() -> None:
    table = bench()
    chosen = table[share(table) > 1].sort_values("key").to_dict("records")
    settings = {row["key"]: (row["key"], partial(remeasure, row)) for row in chosen}
    again(__doc__ or "", FILE, settings, partial(report, table))


if __name__ == "__main__":
    main()
