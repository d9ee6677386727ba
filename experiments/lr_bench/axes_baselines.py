"""Every baseline's error over ours, on the same settings: `python -m experiments.lr_bench.axes_baselines`.

Those that have something to fit are fitted without the method, or the model, like ours.
``results/axes_baselines.json``; what it says of 300 steps is from ``long``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.records import read_json, write_json

from .axes import SPLITS
from .evaluate import FIXED, scored
from .held_out import left_out
from .laws import LAWS
from .table import HERE, LONG, read

FILE = HERE / "axes_baselines.json"
OURS = ("combined", "eigenvalue", "adam", "probe")
BASELINES = (
    "constant fitted",
    "constant fitted, steps, batch",
    "c / lambda",
    "c / sqrt lambda",
    "critical at start",
    "38 / lambda_P",
    "edge",
    "directional",
    "critical after",
    "Polyak",
    "gradient l1",
    "gradient l2",
    "Gauss-Newton",
    "trace_P",
    "tenth of the steps",
    "tenth of the steps, free",
)
KINDS = ("method", "model")
LONGEST = "300 steps"


def predictions(table: pd.DataFrame, kind: str) -> dict[str, pd.Series]:
    """What each baseline, and each law of ours, predicts with a group left out, a column a name."""
    groups = table[SPLITS[kind]]
    laws = {law.name: law for law in LAWS}
    told = {name: left_out(laws[name], table, groups) for name in (*BASELINES, *OURS)}
    return told | {name: formula(table) for name, formula in FIXED.items()}


def study(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each baseline and way of leaving out.

    Args:
        table: The bench's settings, scored.
    """
    rows = []
    for kind in KINDS:
        told = predictions(table, kind)
        for name in (*BASELINES, *FIXED):
            factors = {one: np.exp(np.abs(np.log(told[one] / table["best_lr"]))) for one in (name, *OURS)}
            own = factors[name].notna()
            row = {"baseline": name, "left_out": kind, "settings": int(own.sum())} | _pair(factors[name][own])
            for one in OURS:
                # Settings without short runs have no ``probe``.
                if factors[one][own].notna().all():
                    row |= over(row, _pair(factors[one][own]), one)
            rows.append(row)
    return rows


def longest(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same of what ``long`` says of the runs of 300 steps, with the shipped constants."""
    by_name = {row["predictor"]: row for row in told}
    rows = []
    for name in (*BASELINES, *FIXED):
        if name in by_name:
            row = {"baseline": name, "left_out": LONGEST} | {
                key: by_name[name][key] for key in ("settings", "median_factor", "p90_factor")
            }
            for one in OURS:
                if by_name[one]["settings"] == row["settings"]:
                    row |= over(row, by_name[one], one)
            rows.append(row)
    return rows


def over(row: dict[str, Any], ours: dict[str, Any], name: str) -> dict[str, float]:
    """The baseline's errors over those of a law of ours."""
    return {f"{end}_over_{name}": row[f"{end}_factor"] / ours[f"{end}_factor"] for end in ("median", "p90")}


def _pair(factors: pd.Series) -> dict[str, float]:
    return {"median_factor": float(factors.median()), "p90_factor": float(factors.quantile(0.9))}


def shown(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown: with a method left out, a model, and for 300 steps."""
    lines = [
        "| baseline | settings | its factor, median | over `combined` | at 90% | over `eigenvalue` "
        "| over `probe` |",
        "|---" * 7 + "|",
    ]
    table = {(row["baseline"], row["left_out"]): row for row in rows}
    for name in dict.fromkeys(row["baseline"] for row in rows):
        own = [table[name, kind] for kind in (*KINDS, LONGEST) if (name, kind) in table]
        cells = [
            ", ".join(_two_digits(row[key]) if key in row else "–" for row in own)
            for key in (
                "median_factor",
                "median_over_combined",
                "p90_over_combined",
                "median_over_eigenvalue",
                "median_over_probe",
            )
        ]
        settings = ", ".join(str(row["settings"]) for row in own if row["left_out"] != "model")
        lines.append(f"| {name} | {settings} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _two_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def main() -> None:
    rows = study(scored(read()[0])) + longest(read_json(LONG / "evaluation.json")["rows"])
    write_json(FILE, {"schema": 1, "rows": rows})
    print(shown(rows))


if __name__ == "__main__":
    main()
