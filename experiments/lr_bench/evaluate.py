"""Score every law and baseline on what it has not seen: `python -m experiments.lr_bench.evaluate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.records import write_json
from hessian_lr.score import score
from hessian_lr.sweep import Sweep

from .curves import curves
from .held_out import left_out, widths
from .laws import AFTER, GENTLE, LAWS, Law, derived
from .measure import PROBES
from .table import HERE, read

HIDDEN = {"llama-3m": 192, "gpt2-2m": 160, "smollm2-135m": 576}
# Tinker's published formula with its exponent for Llama: no model here is a Qwen of its table.
TINKER = (5e-5 * 10, 2000, 0.781)
FIXED: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "2e-4": lambda t: pd.Series(2e-4, index=t.index),
    "3e-4": lambda t: pd.Series(3e-4, index=t.index),
    "Tinker's formula": lambda t: TINKER[0] * (TINKER[1] / t["model"].map(HIDDEN)) ** TINKER[2],
    "range test, valley": lambda t: t["range_test_valley"],
    "range test, steepest": lambda t: t["range_test_steepest"],
    "range test, minimum / 10": lambda t: t["range_test_minimum_tenth"],
}
# What is held against the sweep at a tenth of the steps, on the settings that have one.
RIVALS = ("constant fitted", "c / sqrt lambda", "eigenvalue", "adam", "combined")


def metrics(predicted: pd.Series, table: pd.DataFrame, sweeps: dict[str, Sweep]) -> dict[str, Any]:
    """What the score sheet has for one column of predictions; missing ones count against its coverage."""
    have = predicted[predicted.notna()]
    factors = np.exp(np.abs(np.log(have / table.loc[have.index, "best_lr"])))
    regrets, inside, diverged = [], [], 0
    for index, value in have.items():
        sweep = sweeps[table.at[index, "key"]]
        told = score(sweep, float(value), None, None)
        inside.append(bool(told.inside_band))
        # Outside the sweep the loss is unknown: it is taken from the nearest end, and so too kindly.
        lrs = sorted({run.lr for run in sweep.runs})
        near = score(sweep, float(np.clip(value, lrs[0], lrs[-1])), None, None)
        regrets.append(near.regret)
        diverged += any(
            run.diverged for run in sweep.runs if abs(math.log(run.lr / value)) < math.log(10) / 8
        )
    return {
        "settings": len(have),
        "median_factor": float(np.median(factors)),
        "p90_factor": float(np.quantile(factors, 0.9)),
        "within_2": float(np.mean(factors <= 2)),
        "in_band": float(np.mean(inside)),
        "median_regret": float(np.median(regrets)),
        "p90_regret": float(np.quantile(regrets, 0.9)),
        "diverged": diverged,
    }


# What has to be measured for a quantity; the warm-up's size follows from the critical learning rate.
NEEDS = {
    "lambda": ("lambda",),
    "gauss_newton": ("gauss-newton",),
    "sharpness": ("lambda",),
    "eigenvalue": ("lambda",),
    "root": ("lambda",),
    "critical": ("critical",),
    "polyak": ("gradient",),
    "gradient": ("gradient",),
    "stability": ("critical", "warm-up", "products"),
    "trace": ("critical", "warm-up", "trace"),
    "edge": ("critical", "warm-up", "products", "gentle"),
    AFTER + "lr_critical": ("critical", "warm-up", "critical after"),
    AFTER + "lr_directional": ("critical", "warm-up", "two products"),
    GENTLE: ("critical", "gentle"),
    "tenth": ("tenth",),
    "lr_probe": ("probe", "critical", "warm-up", "products"),
}


def cost(law: Law, table: pd.DataFrame) -> pd.Series | None:
    """Rows' gradients a prediction takes over those of the sweep it replaces; None: nothing is measured."""
    needed = {
        part for key, parts in NEEDS.items() for part in parts if any(key in term for term in law.terms)
    }
    rows = table["rows"]
    prices = {
        "lambda": table["lambda_start_cost"],
        "gauss-newton": table["gauss_newton_start_cost"],
        "gradient": rows,
        "critical": table["lr_critical_start_cost"],
        "warm-up": table[AFTER + "warmup_cost"],
        "products": table[AFTER + "products_cost"] * table[AFTER + "products"],
        "two products": 2 * table[AFTER + "products_cost"],
        "trace": PROBES * table[AFTER + "products_cost"],
        "critical after": table[AFTER + "lr_critical_cost"],
        "gentle": table[GENTLE + "warmup_cost"]
        + table[GENTLE + "products_cost"] * table[GENTLE + "products"],
        "tenth": table["tenth_cost"],
        "probe": table["probe_cost"],
    }
    return sum(prices[part] for part in needed) / table["sweep_cost"] if needed else None


def scored(table: pd.DataFrame) -> pd.DataFrame:
    """The settings that count: those whose best learning rate lies inside their sweep."""
    return derived(table[~table["censored"] & table["best_lr"].notna()].reset_index(drop=True))


def evaluate(table: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each law and kind of leaving out, and one for each baseline that has nothing to fit.

    Where baselines took training of their own (a sweep at a tenth of the steps, a range test), all that
    matter are scored once more on just the settings that have them.
    """
    table = scored(table)
    sweeps = curves(runs, table)
    rows = []
    everywhere, those = pd.Series(True, index=table.index), table["tenth_best_lr"].notna()
    for law in LAWS:
        for kind in ("method", "model"):
            predicted, half = left_out(law, table, table[kind]), widths(law, table, table[kind])
            asked = {kind: everywhere} | ({f"{kind}, same settings": those} if law.name in RIVALS else {})
            for told, chosen in asked.items():
                rows.append(
                    {"law": law.name, "left_out": told}
                    | _judged(law, predicted[chosen], half[chosen], table[chosen], sweeps)
                )
    for name, formula in FIXED.items():
        rows.append({"law": name, "left_out": "nothing fitted", **metrics(formula(table), table, sweeps)})
    return rows


def _judged(
    law: Law, predicted: pd.Series, half: pd.Series, table: pd.DataFrame, sweeps: dict[str, Sweep]
) -> dict[str, Any]:
    errors = np.exp(np.abs(np.log(predicted / table["best_lr"])))
    covered = (errors <= half)[predicted.notna() & half.notna()]
    share = cost(law, table)
    return {
        **metrics(predicted, table, sweeps),
        "coverage": float(covered.mean()) if len(covered) else None,
        "median_width": float(np.nanmedian(half) ** 2) if len(covered) else None,
        "cost": None if share is None else float(np.nanmedian(share)),
    }


def shown(rows: list[dict[str, Any]]) -> str:
    """The score sheet as a Markdown table."""
    lines = [
        "| law | left out | n | factor, median | p90 | within 2 | in 1% band | regret, median | p90 "
        "| diverged | 80% covers | width | cost / sweep |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tail = " | ".join(
            "" if row.get(name) is None else form.format(row[name])
            for name, form in (("coverage", "{:.0%}"), ("median_width", "{:.1f}"), ("cost", "{:.0%}"))
        )
        lines.append(
            f"| {row['law']} | {row['left_out']} | {row['settings']} | {row['median_factor']:.2f} "
            f"| {row['p90_factor']:.2f} | {row['within_2']:.0%} | {row['in_band']:.0%} "
            f"| {row['median_regret']:.1%} | {row['p90_regret']:.1%} | {row['diverged']} | {tail} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    table, runs = read()
    rows = evaluate(table, runs)
    write_json(HERE / "evaluation.json", {"schema": 1, "rows": rows})
    Path(HERE / "evaluation.md").write_text(shown(rows), encoding="utf-8")
    print(shown(rows))


if __name__ == "__main__":
    main()
