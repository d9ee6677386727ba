"""Whether the scatter of rows tells how far a prediction is off: `python -m experiments.lr_bench.scatter`.

After the package's warm-up λ_P is measured on all rows of a setting, and beside it the standard error that
its quotient has over them, as a share of it. It is about one where a single row makes λ_P. The small models'
settings, in float32; laws get powers of 1 + that share. ``results/scatter.csv`` has a row a setting;
``--report`` starts from that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from hessian_lr.curvature.adam import PreconditionedOperator, adam_preconditioner
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.measure.confirm import sampling_error
from hessian_lr.measure.warmup import WARMUP_STEPS, warm_up
from hessian_lr.prepare import Prepared
from hessian_lr.records import write_json
from hessian_lr.spectrum import lanczos

from .axes import SHIPPED, SPLITS
from .axes_terms import shown, study
from .held_out import left_out
from .in_place import small_again
from .later import found
from .laws import AFTER, LAWS
from .measure import RTOL
from .table import HERE, REAL_LONG, SHAPES

FILE = HERE / "scatter.csv"
PRODUCTS = 12
# Powers of 1 + the share, by the quantity whose it is.
TERMS: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "λ_P": ("scatter_after",),
    "λ": ("scatter_start",),
    "both": ("scatter_after", "scatter_start"),
}


def measure(prepared: Prepared, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """λ_P after the warm-up that the row had, and its standard error over the rows."""
    optimizer = warm_up(
        prepared.model,
        prepared.warmup_batches,
        steps=WARMUP_STEPS,
        top_lr=row[AFTER + "warmup_lr"],
        dtype=prepared.dtype,
    )
    operator = HessianOperator(prepared.model, prepared.batches, dtype=prepared.dtype)
    metric = PreconditionedOperator(operator, adam_preconditioner(optimizer, operator.parameters))
    top = lanczos(metric.matvec, operator.size, rtol=RTOL, max_products=PRODUCTS, seed=0)
    metric.matvec(top.vector)
    error = sampling_error(operator.batch_forms, operator.weights)
    yield {"lambda_p": top.value, "error": error, "microbatches": len(operator.batch_forms)}


def joined(table: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The settings with 1 + each relative standard error, where λ_P is positive."""
    points = points[points["lambda_p"] > 0].set_index("key")
    table = table[table["key"].isin(points.index)].reset_index(drop=True)
    after = (points["error"] / points["lambda_p"]).loc[table["key"]].to_numpy()
    start = (table["sampling_error_start"] / table["lambda_start"].abs()).to_numpy()
    return table.assign(scatter_after=1 + after, scatter_start=1 + start)


def biases(table: pd.DataFrame) -> list[dict[str, Any]]:
    """How each law's predicted / best, its task or method left out, goes with λ_P's scatter (Spearman)."""
    rows = []
    for law in (law for law in LAWS if law.name in SHIPPED):
        for split, column in SPLITS.items():
            off = np.log(left_out(law, table, table[column]) / table["best_lr"]).dropna()
            ranks = spearmanr(table.loc[off.index, "scatter_after"], off)
            row = {"law": law.name, "left_out": split, "settings": len(off)}
            rows.append(row | {"rho": float(ranks.statistic), "p": float(ranks.pvalue)})
    return rows


def shown_sides(rows: list[dict[str, Any]]) -> str:
    """What ``biases`` found, in Markdown: a law a line, the ways of leaving out side by side."""
    heads = " | ".join(f"{split} left out" for split in SPLITS)
    lines = [f"| law | {heads} |", "|---" * (1 + len(SPLITS)) + "|"]
    for law in SHIPPED:
        own = [row for row in rows if row["law"] == law]
        cells = " | ".join(f"{row['rho']:.2f} ({row['p']:.1g})" for row in own)
        lines.append(f"| {law} | {cells} |")
    return "\n".join(lines) + "\n"


def real() -> list[dict[str, Any]]:
    """The real model's settings in no fit whose files tell λ_P's error: its share, and `combined` / best."""
    rows = []
    for row in [*found(SHAPES), *found(REAL_LONG)]:
        if error := row.get("sampling_error_preconditioned"):
            told = {name: row[name] for name in ("data", "method", "rank", "steps")}
            told["share"] = error / row["lambda_preconditioned"]
            rows.append(told | {"ratio": row["predictions"]["combined"]["lr"] / row["best_lr"]})
    return sorted(rows, key=lambda row: row["share"])


def shown_real(rows: list[dict[str, Any]]) -> str:
    """The rows of ``real`` in Markdown."""
    lines = ["| task | method | rank | steps | error / λ_P | predicted / best |", "|---" * 6 + "|"]
    for row in rows:
        cells = " | ".join(str(row[name]) for name in ("data", "method", "rank", "steps"))
        lines.append(f"| {cells} | {row['share']:.2f} | {row['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def report(table: pd.DataFrame) -> None:
    """Print what ``results/scatter.csv`` says, and keep it beside that."""
    own = joined(table, pd.read_csv(FILE))
    rows, sides = study(own, TERMS), biases(own)
    write_json(FILE.with_suffix(".json"), {"schema": 1, "rows": rows, "sides": sides})
    print(shown(rows), shown_sides(sides), shown_real(real()), sep="\n")


def main() -> None:
    small_again(__doc__ or "", FILE, measure, report)


if __name__ == "__main__":
    main()
