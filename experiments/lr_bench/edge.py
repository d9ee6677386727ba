"""Where a run would stand at the edge of stability: `python -m experiments.lr_bench.edge`.

The warm-up before λ_P rises to a share of η_c. Here it rises to each learning rate η of a grid instead,
every time from the start, and λ_P is measured after it. The self-consistent edge is the η at which η·λ_P,
measured after a warm-up *to that η*, reaches κ·38, near which trained networks hover (Cohen et al. 2022,
arXiv 2207.14484). Laws are made of it in the place of 38/λ_P. ``results/edge.csv`` has a row a setting and η;
``--report`` starts from that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.curvature.adam import PreconditionedOperator, adam_preconditioner
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.errors import HessianLRError
from hessian_lr.measure import unchanged
from hessian_lr.measure.warmup import warm_up
from hessian_lr.prepare import Prepared
from hessian_lr.records import write_json
from hessian_lr.spectrum import lanczos
from hessian_lr.sweep.plan import learning_rate, nearest_point

from .held_out import left_out
from .in_place import THRESHOLD, small_again
from .laws import AFTER, LAWS, SETTING, SHARE, THEORY, Law
from .measure import RTOL
from .table import HERE

FILE = HERE / "edge.csv"
ROWS, STEPS, PRODUCTS = 4, 10, 8
# η·λ_P/38 is followed up and down until it is at least this, and at most that; so many points at most.
HIGH, LOW, MOST = 1.0, 0.2, 9
# Where it is likely to lie between the two, as a share of 38/λ_P after the package's own warm-up.
START = 0.3
KAPPAS = (0.25, 0.5, 1.0)
AS_SHIPPED = ("38 / lambda_P", "adam", "combined")
EDGE_LAWS = (
    Law("edge", {"lr_edge": THEORY}),
    Law("edge, critical", {"lr_edge": THEORY, "critical_over_edge": SHARE} | SETTING),
    Law("edge, eigenvalue", {"lr_edge": THEORY, "eigenvalue_over_edge": SHARE} | SETTING),
    Law(
        "edge, critical, eigenvalue",
        {"lr_edge": THEORY, "critical_over_edge": SHARE, "eigenvalue_over_edge": SHARE} | SETTING,
    ),
)


def after(prepared: Prepared, lr: float) -> dict[str, float] | None:
    """λ_P and the loss on the sample after a warm-up to ``lr``, which is undone; None where it diverged."""
    batches = prepared.batches[:ROWS]
    with unchanged(prepared.model):
        try:
            optimizer = warm_up(
                prepared.model, prepared.warmup_batches, steps=STEPS, top_lr=lr, dtype=prepared.dtype
            )
            operator = HessianOperator(prepared.model, batches, dtype=prepared.dtype)
            metric = PreconditionedOperator(operator, adam_preconditioner(optimizer, operator.parameters))
            top = lanczos(metric.matvec, operator.size, rtol=RTOL, max_products=PRODUCTS, seed=0)
        except HessianLRError:
            return None
    cost = STEPS * len(prepared.warmup_batches[0]["input_ids"]) + ROWS * (1 + top.products)
    return {"lambda_p": top.value, "loss": operator.loss, "cost": cost}


def along(prepared: Prepared, start: float) -> Iterator[dict[str, Any]]:
    """Records of learning rates from ``start`` up until the edge is passed, and down until it is far."""
    found: dict[int, float] = {}
    waiting = [nearest_point(start)]
    while waiting and len(found) < MOST:
        point = waiting.pop(0)
        lr = learning_rate(point)
        told = after(prepared, lr)
        found[point] = math.inf if told is None else lr * told["lambda_p"] / THRESHOLD
        yield {"lr": lr, **(told or {})}
        if point == max(found) and found[point] < HIGH:
            waiting.append(point + 1)
        if point == min(found) and found[point] > LOW:
            waiting.append(point - 1)


def crossing(points: pd.DataFrame, kappa: float) -> float:
    """The η at which η·λ_P first reaches κ·38, linear in logarithms between measurements; NaN outside."""
    points = points.sort_values("lr")
    log_lr = np.log(points["lr"].to_numpy())
    # Diverged: well beyond any edge.
    ratio = (points["lr"] * points["lambda_p"] / (kappa * THRESHOLD)).fillna(10.0)
    over = np.log(ratio.to_numpy())
    for i in range(1, len(points)):
        if over[i - 1] < 0 <= over[i]:
            share = over[i - 1] / (over[i - 1] - over[i])
            return float(np.exp(log_lr[i - 1] + (log_lr[i] - log_lr[i - 1]) * share))
    return math.nan


def with_edge(table: pd.DataFrame, points: pd.DataFrame, kappa: float) -> pd.DataFrame:
    """The settings with the edge for ``kappa``, those without one left out."""
    edges = {key: crossing(group, kappa) for key, group in points.groupby("key")}
    table = table.assign(lr_edge=table["key"].map(edges).astype(float))
    for name in ("critical_start", "eigenvalue"):
        short = name.removesuffix("_start")
        table[f"{short}_over_edge"] = table[f"lr_{name}"] / table["lr_edge"]
    return table[table["lr_edge"].notna()].reset_index(drop=True)


def judged(table: pd.DataFrame, law: Law) -> dict[str, Any]:
    """Errors with a method, and with a model, left out."""
    found: dict[str, Any] = {}
    for kind in ("method", "model"):
        factors = np.exp(np.abs(np.log(left_out(law, table, table[kind]) / table["best_lr"]))).dropna()
        found |= {f"{kind}_median": float(factors.median()), f"{kind}_p90": float(factors.quantile(0.9))}
    return {"law": law.name, "settings": len(factors), **found}


def report(table: pd.DataFrame) -> None:
    """Print what ``results/edge.csv`` says, and keep it beside that."""
    points = pd.read_csv(FILE)
    # λ_P has to be positive for a threshold.
    points = points[points["lambda_p"].isna() | (points["lambda_p"] > 0)]
    table = table[table["key"].isin(points.dropna()["key"])].reset_index(drop=True)
    shipped = [law for law in LAWS if law.name in AS_SHIPPED]
    edges = []
    for kappa in KAPPAS:
        own = with_edge(table, points, kappa)
        edges += [{"kappa": kappa, **judged(own, law)} for law in (*EDGE_LAWS, *shipped)]
    costs = points.groupby("key")["cost"].sum() / table.set_index("key")["sweep_cost"]
    write_json(FILE.with_suffix(".json"), {"schema": 1, "edges": edges, "price": float(costs.median())})
    print(pd.DataFrame(edges).to_string(index=False, float_format="{:.3g}".format), end="\n\n")
    print(f"all warm-ups of a setting, over its sweep: {costs.median():.0%} in the median")


def measure(prepared: Prepared, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """``along``, from a share of 38/λ_P as the bench has it."""
    return along(prepared, START * row[AFTER + "lr_stability"])


def main() -> None:
    small_again(__doc__ or "", FILE, measure, report)


if __name__ == "__main__":
    main()
