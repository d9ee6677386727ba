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
from typing import Any

import pandas as pd

from hessian_lr.curvature.adam import PreconditionedOperator, adam_preconditioner
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.measure.warmup import warm_up
from hessian_lr.prepare import Prepared
from hessian_lr.records import write_json
from hessian_lr.spectrum import lanczos
from hessian_lr.spectrum.lanczos import dot

from .edge import judged
from .in_place import LAWS_OF_IT, small_again, with_it
from .laws import AFTER, derived
from .measure import RTOL
from .table import HERE

FILE = HERE / "groups.csv"
SIZES, STEPS, PRODUCTS = (1, 2, 4, 8), 10, 6
MEASURED = ("eigenvalue", "along")


def measure(prepared: Prepared, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record a group size, after the warm-up that the row had: plain means over the groups."""
    model, rows = prepared.model, prepared.batches
    optimizer = warm_up(
        model, prepared.warmup_batches, steps=STEPS, top_lr=row[AFTER + "warmup_lr"], dtype=prepared.dtype
    )
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


def report(table: pd.DataFrame) -> None:
    """Print what ``results/groups.csv`` says, and keep it beside that."""
    points = pd.read_csv(FILE)
    able = points.groupby("key")[list(MEASURED)].min().min(axis=1) > 0
    told: list[dict[str, Any]] = []
    own = derived(table[table["key"].isin(able[able].index)].reset_index(drop=True))
    for what in MEASURED:
        for size in SIZES:
            of_size = points[points["rows"] == size].set_index("key")[what]
            made = with_it(own, of_size)
            told += [{"from": what, "rows": size, **judged(made, law)} for law in LAWS_OF_IT]
    write_json(FILE.with_suffix(".json"), {"schema": 1, "laws": told})
    print(pd.DataFrame(told).to_string(index=False, float_format="{:.3g}".format))


def main() -> None:
    small_again(__doc__ or "", FILE, measure, report)


if __name__ == "__main__":
    main()
