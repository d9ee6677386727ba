"""How λ_P moves with the warm-up before it: `python -m experiments.lr_bench.steadiness`.

The package makes ten steps whose learning rate rises to a share of η_c. Here the same settings, the small
models' that differ in nothing but the method, are warmed up for 3 to 40 steps, to a quarter and to four times
that learning rate, and from two other seeds, which change the initialization and the rows. The warm-up's ten
batches come again where it is longer. λ_P is measured after each on eight rows, and laws are made of each in
the place of the package's. ``results/steadiness.csv`` has a row a setting and warm-up; ``--report`` starts
from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from hessian_lr.curvature.adam import PreconditionedOperator, adam_preconditioner
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.errors import HessianLRError
from hessian_lr.measure import unchanged
from hessian_lr.measure.warmup import WARMUP_STEPS, warm_up
from hessian_lr.prepare import Prepared, prepare
from hessian_lr.records import write_json
from hessian_lr.setting import Setting
from hessian_lr.spectrum import lanczos

from .again import again
from .edge import judged
from .in_place import LAWS_OF_IT, with_it
from .laws import AFTER
from .measure import RTOL
from .price import bench
from .run import Loader
from .settings import BASE, MODELS
from .table import HERE, setting_of

FILE = HERE / "steadiness.csv"
ROWS, PRODUCTS = 8, 12
# (seed, steps, times the package's own largest learning rate); the package's comes first.
OWN = (0, WARMUP_STEPS, 1.0)
WAYS = (
    OWN,
    *((0, steps, 1.0) for steps in (3, 5, 20, 40)),
    *((0, WARMUP_STEPS, size) for size in (0.25, 4.0)),
    *((seed, WARMUP_STEPS, 1.0) for seed in (1, 2)),
)
WAY = ["seed", "steps", "size"]


def after(prepared: Prepared, steps: int, lr: float) -> float | None:
    """λ_P after a warm-up of so many steps up to ``lr``, which is undone; None where it diverged."""
    with unchanged(prepared.model):
        try:
            optimizer = warm_up(
                prepared.model, prepared.warmup_batches, steps=steps, top_lr=lr, dtype=prepared.dtype
            )
            operator = HessianOperator(prepared.model, prepared.batches[:ROWS], dtype=prepared.dtype)
            metric = PreconditionedOperator(operator, adam_preconditioner(optimizer, operator.parameters))
            return lanczos(metric.matvec, operator.size, rtol=RTOL, max_products=PRODUCTS, seed=0).value
        except HessianLRError:
            return None


def remeasure(row: dict[str, Any], loader: Loader) -> Iterator[dict[str, Any]]:
    """λ_P after every warm-up of a row of the bench's table, in float32 as for ``price``."""
    for seed in dict.fromkeys(way[0] for way in WAYS):
        setting = replace(setting_of(row), seed=seed, dtype="float32")
        prepared = prepare(setting, *loader(setting))
        for way in (one for one in WAYS if one[0] == seed):
            _, steps, size = way
            found = after(prepared, steps, row[AFTER + "warmup_lr"] * size)
            yield dict(zip(WAY, way, strict=True)) | {"lambda_p": found}


def at_base(table: pd.DataFrame) -> pd.DataFrame:
    """The bench's settings on the small models that differ in nothing but the method."""
    small = table[table["model"].isin([one.name for one in MODELS.iterdir()])]
    base = Setting(**BASE)
    alike = (small["rank"] == base.rank) & (small["alpha"] == base.alpha) & (small["data"] == base.data)
    alike &= (small["batch_size"] == base.batch_size) & (small["steps"] == base.steps)
    return small[alike & (small["target_modules"] == base.target_modules)].reset_index(drop=True)


def findings(table: pd.DataFrame, points: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a warm-up: λ_P over that of the package's own, and the errors of laws with a method, and a model,
    left out, fitted to these settings.
    """
    by_way = {way: group.set_index("key")["lambda_p"] for way, group in points.groupby(WAY)}
    positive = pd.DataFrame(by_way).min(axis=1) > 0
    able = positive[positive].index
    rows = []
    for way in WAYS:
        found = by_way[way]
        over = (found / by_way[OWN])[able]
        told = dict(zip(("low", "median", "high"), over.quantile([0.1, 0.5, 0.9]), strict=True))
        own = with_it(table[table["key"].isin(able)], found)
        laws = {law.name: judged(own, law) for law in LAWS_OF_IT}
        rows.append(
            {**dict(zip(WAY, way, strict=True)), "settings": len(able), "lost": int(found.isna().sum())}
            | {"not_positive": int((found <= 0).sum()), **told, "laws": list(laws.values())}
        )
    return rows


def report(table: pd.DataFrame) -> None:
    """Print what ``results/steadiness.csv`` says, and keep it beside that."""
    rows = findings(table, pd.read_csv(FILE))
    write_json(FILE.with_suffix(".json"), {"schema": 1, "rows": rows})
    for row in rows:
        print(told(row))


def told(row: dict[str, Any]) -> str:
    """A line of the table in Markdown: the warm-up, λ_P beside the package's, and each law's errors."""
    errors = [f"{one['method_median']:.2f} / {one['method_p90']:.2f}" for one in row["laws"]]
    times = f"{row['median']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    return f"| {row['seed']} | {row['steps']} | {row['size']:g} | {times} | {' | '.join(errors)} |"


def main() -> None:
    table = at_base(bench())
    settings = {
        row["key"]: (row["key"], partial(remeasure, row))
        for row in table.sort_values("key").to_dict("records")
    }
    again(__doc__ or "", FILE, settings, partial(report, table))


if __name__ == "__main__":
    main()
