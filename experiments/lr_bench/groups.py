"""λ_P of few rows at a time: `python -m experiments.lr_bench.groups`.

Training steps see a batch each, and what is stable for the mean over the whole sample need not be for each of
its batches: where stochastic gradient descent settles, it is the curvature of single batches along their own
gradients that meets 2/η, and not the sample's largest eigenvalue (Andreyev and Beneventano 2024, arXiv
2412.20553). Here the package's warm-up is made in the small models' settings. After it, in Adam's geometry
and on average over the sample's groups of one row, two, four or eight, are measured: the largest eigenvalue
of a group's own Hessian, and its curvature along its own gradient, gᵀP⁻¹·H·P⁻¹g / gᵀP⁻¹g. Laws are made of 38
over each in the place of 38/λ_P.
``results/groups.csv`` has a row a setting and group size; ``--report`` starts from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from hessian_lr.curvature.adam import PreconditionedOperator, adam_preconditioner, stability_threshold
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.predict.warmup import BETAS, warm_up
from hessian_lr.prepare import Prepared, prepare
from hessian_lr.records import write_json
from hessian_lr.spectrum import lanczos
from hessian_lr.spectrum.lanczos import dot

from .again import again
from .edge import judged
from .laws import AFTER, SETTING, SHARE, THEORY, Law, derived
from .measure import RTOL
from .price import bench
from .run import Loader
from .settings import LARGE
from .table import HERE, setting_of

FILE = HERE / "groups.csv"
SIZES, STEPS, PRODUCTS = (1, 2, 4, 8), 10, 6
THRESHOLD = stability_threshold(BETAS[0])
MEASURED = ("eigenvalue", "along")
GROUP_LAWS = (
    Law("38 / it", {"lr_group": THEORY}),
    Law("it, critical", {"lr_group": THEORY, "critical_over_group": SHARE} | SETTING),
    Law(
        "it, critical, eigenvalue",
        {"lr_eigenvalue": THEORY, "critical_over_eigenvalue": SHARE, "group_over_eigenvalue": SHARE}
        | SETTING,
    ),
)


def measure(prepared: Prepared, top_lr: float) -> Iterator[dict[str, Any]]:
    """A record a group size, after a warm-up to ``top_lr``: means over the groups, weighted by labels."""
    model, rows = prepared.model, prepared.batches
    optimizer = warm_up(model, prepared.warmup_batches, steps=STEPS, top_lr=top_lr, dtype=prepared.dtype)
    for size in (size for size in SIZES if size <= len(rows)):
        found = []
        for start in range(0, len(rows), size):
            operator = HessianOperator(model, rows[start : start + size], dtype=prepared.dtype)
            diagonal = adam_preconditioner(optimizer, operator.parameters)
            whole = PreconditionedOperator(operator, diagonal)
            top = lanczos(whole.matvec, operator.size, rtol=RTOL, max_products=PRODUCTS, seed=0)
            # In Adam's coordinates, where P^-½·g is the gradient.
            gradient = whole.root * operator.gradient()
            along = dot(gradient, whole.matvec(gradient)) / dot(gradient, gradient)
            found.append((top.value, along))
            operator.release()
        values = pd.DataFrame(found, columns=list(MEASURED))
        spread = values.std(ddof=1) if len(values) > 1 else values.iloc[0] * math.nan
        yield {"rows": size, **values.mean().to_dict(), **{f"{n}_spread": spread[n] for n in MEASURED}}


def with_groups(table: pd.DataFrame, found: pd.Series) -> pd.DataFrame:
    """The settings with 38 over what was measured of their groups, where that is positive."""
    lr = THRESHOLD / table["key"].map(found)
    table = table.assign(
        lr_group=lr,
        critical_over_group=table["lr_critical_start"] / lr,
        group_over_eigenvalue=lr / table["lr_eigenvalue"],
    )
    return table[lr > 0].reset_index(drop=True)


def report(table: pd.DataFrame) -> None:
    """Print what ``results/groups.csv`` says, and keep it beside that."""
    points = pd.read_csv(FILE)
    able = points.groupby("key")[list(MEASURED)].min().min(axis=1) > 0
    told: list[dict[str, Any]] = []
    own = derived(table[table["key"].isin(able[able].index)].reset_index(drop=True))
    for what in MEASURED:
        for size in SIZES:
            of_size = points[points["rows"] == size].set_index("key")[what]
            with_it = with_groups(own, of_size)
            told += [{"from": what, "rows": size, **judged(with_it, law)} for law in GROUP_LAWS]
    write_json(FILE.with_suffix(".json"), {"schema": 1, "laws": told})
    print(pd.DataFrame(told).to_string(index=False, float_format="{:.3g}".format))


def main() -> None:
    table = bench()
    small = table[(table["model"] != LARGE) & (table[AFTER + "lr_stability"] > 0)].sort_values("key")
    settings = {row["key"]: (row["key"], partial(remeasure, row)) for row in small.to_dict("records")}
    again(__doc__ or "", FILE, settings, partial(report, table))


def remeasure(row: dict[str, Any], loader: Loader) -> Iterator[dict[str, Any]]:
    """``measure`` for a row of the bench's table."""
    # As for ``price``: bfloat16 is slow where the processor lacks it.
    setting = replace(setting_of(row), dtype="float32")
    return measure(prepare(setting, *loader(setting)), row[AFTER + "warmup_lr"])


if __name__ == "__main__":
    main()
