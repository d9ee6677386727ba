"""How little a prediction may cost: `python -m experiments.lr_bench.price`.

Settings are measured again on two rows of data instead of eight (SmolLM2: four), with each of Lanczos's
products told, after warm-ups of ten steps and of five; every sixth on 32 rows. Laws are then fitted and
scored on what two rows, fewer steps and fewer products say, and the shipped constants are given what two rows
and 32 say. ``results/price.csv`` has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from hessian_lr.curvature.adam import PreconditionedOperator, adam_preconditioner, stability_threshold
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.errors import HessianLRError
from hessian_lr.measure import unchanged
from hessian_lr.measure.line_search import critical_learning_rate
from hessian_lr.measure.preconditioned import WARMUP_SHARE
from hessian_lr.measure.warmup import warm_up
from hessian_lr.predict import PREDICTORS, load_calibration
from hessian_lr.prepare import Prepared, prepare
from hessian_lr.records import write_json
from hessian_lr.setting import BETAS
from hessian_lr.spectrum import lanczos

from .again import again
from .evaluate import scored
from .held_out import left_out
from .laws import AFTER, LAWS, Law, derived
from .prospective import predicted
from .run import Loader
from .settings import LARGE
from .table import HERE, LONG, PROBE, read, setting_of

FILE = HERE / "price.csv"
FEW, MANY, EVERY = 2, 32, 6
WARMUPS, PRODUCTS = (10, 5), 10
# Of the real model, which takes minutes a setting.
LARGE_TOO = (
    *(f"smollm2-{name}" for name in ("16-lora", "commonsense-lora", "commonsense-milora")),
    *(f"smollm2-instruction-{method}" for method in ("lora", "pissa")),
)
# So tight that every product is made.
NEVER = 1e-9
# What has to be paid for each law.
PARTS = {
    "combined": ("lambda", "critical", "warmup", "products"),
    "adam": ("critical", "warmup", "products"),
    "eigenvalue": ("lambda",),
    PROBE: ("critical", "warmup", "products", "probe"),
}
LENGTHS: dict[str, Callable[[pd.Series], pd.Series]] = {
    "15 to 30 steps": lambda steps: steps <= 30,
    "60 and 120": lambda steps: (steps > 30) & (steps <= 120),
    "300": lambda steps: steps > 120,
}


@dataclass(frozen=True)
class Asked:
    """A way to measure: rows, steps of the warm-up, products for λ and for λ_P."""

    rows: int
    warmup_steps: int
    products: int
    products_p: int

    @property
    def told(self) -> str:
        products = f"{self.products} and {self.products_p} products"
        return f"{self.rows} rows, {self.warmup_steps} warm-up steps, {products}"


WAYS = tuple(Asked(FEW, steps, *products) for steps in WARMUPS for products in ((10, 10), (6, 4), (3, 3)))


def measure(prepared: Prepared, rows: int) -> Iterator[dict[str, Any]]:
    """What so many rows of the sample say, a record a warm-up: Ritz values after 1, 2, … products each."""
    model, batches = prepared.model, prepared.batches[:rows]
    operator = HessianOperator(model, batches, dtype=prepared.dtype)
    at_start = ritz_values(operator.matvec, operator.size)
    critical, forwards = critical_learning_rate(model, batches, operator.gradient().sign())
    told = {"rows": rows, "loss": operator.loss, "lr_critical": critical, "forwards": forwards}
    told |= _numbered("lambda", at_start)
    for steps in WARMUPS if critical else ():
        with unchanged(model):
            values = after(prepared, batches, steps, critical * WARMUP_SHARE)
        yield told | {"warmup_steps": steps} | _numbered("lambda_p", values)


def after(prepared: Prepared, batches: Sequence[Any], steps: int, top_lr: float) -> list[float]:
    """λ_P's Ritz values after a warm-up, which the caller undoes."""
    model: nn.Module = prepared.model
    try:
        optimizer = warm_up(model, prepared.warmup_batches, steps=steps, top_lr=top_lr, dtype=prepared.dtype)
    except HessianLRError:
        return []
    operator = HessianOperator(model, batches, dtype=prepared.dtype)
    diagonal = adam_preconditioner(optimizer, operator.parameters)
    return ritz_values(PreconditionedOperator(operator, diagonal).matvec, operator.size)


def ritz_values(matvec: Any, size: int) -> list[float]:
    """The largest Ritz value after each product."""
    found: list[float] = []

    def note(done: int, total: int, theta: float, residual: float) -> None:
        found.append(theta)

    lanczos(matvec, size, rtol=NEVER, max_products=PRODUCTS, seed=0, progress=note)
    return found


def _numbered(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}_{count}": value for count, value in enumerate(values, 1)}


def bench() -> pd.DataFrame:
    """The settings that count, the longest with the others."""
    both = [scored(read(folder)[0]) for folder in (HERE, LONG)]
    return pd.concat([one.dropna(axis=1, how="all") for one in both], ignore_index=True)


def priced(table: pd.DataFrame, prices: pd.DataFrame, asked: Asked) -> pd.DataFrame:
    """Settings with what ``asked`` measures in place of what the bench did, and its price.

    Settings without a measurement are left out; prices are in gradients of a row.
    """
    alike = (prices["rows"] == asked.rows) & (prices["warmup_steps"] == asked.warmup_steps)
    own = prices[alike].set_index("key")
    table = table[table["key"].isin(own.index)].reset_index(drop=True)
    own = own.loc[table["key"]].reset_index(drop=True)
    # Lanczos may end early, its space exhausted: then its last value is the eigenvalue.
    at_start, after_it = (
        own[[f"{name}_{count}" for count in range(1, products + 1)]].ffill(axis=1).iloc[:, -1]
        for name, products in (("lambda", asked.products), ("lambda_p", asked.products_p))
    )
    made = table.assign(
        loss_start=own["loss"],
        lambda_start=at_start,
        lr_critical_start=own["lr_critical"],
        **{AFTER + "lr_stability": stability_threshold(BETAS[0]) / after_it},
        price_lambda=asked.rows * (1 + asked.products),
        price_critical=asked.rows * (1 + 0.5 * own["forwards"]),
        price_warmup=asked.warmup_steps * table["batch_size"],
        # One product more, with Adam's step, tells whether the warm-up was long enough.
        price_products=asked.rows * (2 + asked.products_p),
        price_probe=table["probe_cost"],
    )
    return derived(made)


def judged(table: pd.DataFrame, law: Law, kind: str) -> dict[str, float | None]:
    """Errors with a method, or a model, left out, and the price as a share of the sweep's."""
    factors = np.exp(np.abs(np.log(left_out(law, table, table[kind]) / table["best_lr"]))).dropna()
    price = sum(table[f"price_{part}"] for part in PARTS[law.name]) / table["sweep_cost"]
    by_length = {told: price[those(table["steps"])].median() for told, those in LENGTHS.items()}
    return {
        "settings": len(factors),
        "median_factor": float(factors.median()),
        "p90_factor": float(factors.quantile(0.9)),
        # No short runs without 60 steps.
        **{f"price, {told}": None if pd.isna(one) else float(one) for told, one in by_length.items()},
    }


def findings(table: pd.DataFrame, prices: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each way to measure, law and kind of leaving out, over the small models' settings."""
    small = table[table["model"] != LARGE]
    as_it_was = small[small["key"].isin(prices["key"])].assign(
        price_lambda=lambda t: t["lambda_start_cost"],
        price_critical=lambda t: t["lr_critical_start_cost"],
        price_warmup=lambda t: t[AFTER + "warmup_cost"],
        price_products=lambda t: t[AFTER + "products_cost"] * (t[AFTER + "products"] + 1),
        price_probe=lambda t: t["probe_cost"],
    )
    ways = {"8 rows, 10 warm-up steps, until they stop": as_it_was.reset_index(drop=True)}
    ways |= {one.told: priced(small, prices, one) for one in WAYS}
    return [
        {"way": told, "law": law.name, "left_out": kind, **judged(one, law, kind)}
        for law in LAWS
        if law.name in PARTS
        for kind in ("method", "model")
        for told, one in ways.items()
    ]


def moved(table: pd.DataFrame, prices: pd.DataFrame) -> list[dict[str, Any]]:
    """How far the shipped constants' predictions move with two rows, or 32, and how far off they then are.

    With six products each, after ten warm-up steps.
    """
    found = []
    for rows in (FEW, MANY):
        other = priced(table, prices, Asked(rows, 10, 6, 6))
        same = table.set_index("key").loc[other["key"]].reset_index()
        for predictor in PREDICTORS:
            then, now = (predicted(predictor, load_calibration(), one)["lr"] for one in (same, other))
            for model, chosen in other.groupby(other["model"] == LARGE).groups.items():
                off = [np.exp(np.abs(np.log(one / other["best_lr"])))[chosen] for one in (then, now)]
                found.append(
                    {"rows": rows, "predictor": predictor, "model": LARGE if model else "small"}
                    | {"settings": len(chosen), "ratio": float((now / then)[chosen].median())}
                    | {"median_then": float(off[0].median()), "p90_then": float(off[0].quantile(0.9))}
                    | {"median_now": float(off[1].median()), "p90_now": float(off[1].quantile(0.9))}
                )
    return found


def main() -> None:
    table = bench()
    small = table[table["model"] != LARGE].sort_values("key").to_dict("records")
    large = table[table["key"].isin(LARGE_TOO)].to_dict("records")
    chosen = [(FEW, row) for row in [*small, *large]] + [(MANY, row) for row in small[::EVERY]]
    settings = {f"{row['key']}-{rows}": (row["key"], partial(remeasure, row, rows)) for rows, row in chosen}
    again(__doc__ or "", FILE, settings, partial(report, table))


def remeasure(row: dict[str, Any], rows: int, loader: Loader) -> Iterator[dict[str, Any]]:
    """``measure`` for a row of the bench's table."""
    # bfloat16 is slow where the processor lacks it, and no number here needs it.
    setting = replace(setting_of(row), dtype="float32", samples=max(rows, int(row["samples"])))
    return measure(prepare(setting, *loader(setting)), rows)


def report(table: pd.DataFrame) -> None:
    """Print what ``results/price.csv`` says, and keep it beside that."""
    prices = pd.read_csv(FILE)
    told = {"findings": findings(table, prices), "moved": moved(table, prices)}
    write_json(FILE.with_suffix(".json"), {"schema": 1, **told})
    for rows in told.values():
        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format), end="\n\n")


if __name__ == "__main__":
    main()
