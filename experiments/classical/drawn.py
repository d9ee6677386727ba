"""Gradient descent on the bench's draws; `python -m experiments.classical.drawn` writes the README's tables.

Unlike the base, they differ in rank, alpha, modules, task, batch size and steps; λ is the bench's own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from experiments.lr_bench.held_out import fit, left_out
from experiments.lr_bench.laws import FREE, SETTING, THEORY, Law
from hessian_lr.alignment import align
from hessian_lr.atomic import write_bytes
from hessian_lr.records import read_json

from .findings import aligned, spread
from .run import DRAWN

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- drawn -->\n", "<!-- end of drawn -->\n"
LAWS = {
    "c·2/λ": Law("proportional", {"bound": THEORY}),
    "c·λ^a": Law("power", {"lambda": FREE}),
    "c·λ^a·steps^b·batch^d": Law("power, setting", {"lambda": FREE} | SETTING),
    "c·(Gauss-Newton λ)^a": Law("Gauss-Newton", {"gauss_newton": FREE}),
    "c": Law("constant", {}),
}


def settings() -> pd.DataFrame:
    """A row a setting whose best learning rate lies inside its search."""
    rows = [
        {
            "model": Path(one["setting"]["model"]).name,
            **{name: one["setting"][name] for name in ("method", "data", "batch_size", "steps")},
            "start": "B = 0" if one["zero_b"] else "A, B ≠ 0",
            "lambda": one["bench"]["lambda_start"],
            "gauss_newton": one["bench"]["gauss_newton_start"],
            "bound": 2 / one["bench"]["lambda_start"],
            "best_lr": one["sweep"]["best_lr"],
            "edge": one["sweep"]["edge_lr"],
        }
        for one in read_json(DRAWN)["rows"]
        if one["sweep"]["best_lr"] is not None and not one["sweep"]["censored"]
    ]
    return pd.DataFrame(rows)


def table(every: pd.DataFrame) -> str:
    """How far off each law is with a method, or a model, left out; best and edge over 2/λ by group."""
    lines = [
        f"| {len(every)} settings | method left out: median | 90% | model left out: median | 90% | a, b, d |",
        "|---|---|---|---|---|---|",
    ]
    itself = np.exp(np.abs(np.log(every["bound"] / every["best_lr"])))
    told = f"{itself.median():.2f}× | {itself.quantile(0.9):.2f}×"
    lines.append(f"| 2/λ itself, nothing fitted | {told} | {told} | |")
    for name, law in LAWS.items():
        cells = []
        for kind in ("method", "model"):
            errors = np.exp(np.abs(np.log(left_out(law, every, every[kind]) / every["best_lr"])))
            cells += [f"{errors.median():.2f}×", f"{errors.quantile(0.9):.2f}×"]
        weights = zip(fit(law, every)[1:], law.terms.values(), strict=True)
        free = [weight for weight, (_, spread) in weights if spread]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(f'{one:+.2f}' for one in free)} |")
    lines += [
        "",
        "| | settings | λ apart | best apart | best·λ/2: 10%, median, 90% | edge·λ/2: 10%, median, 90% "
        "| edge below 0.9 | slope of best on λ (95%) | τ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {"all": every}
    for column in ("start", "batch_size", "steps", "data"):
        for value, group in every.groupby(column):
            groups[f"{column.replace('_', ' ')} {value}"] = group
    for name, group in groups.items():
        cells = [f"{spread(group[column].tolist()):.0f}×" for column in ("lambda", "best_lr")]
        cells += [_three(group[column] / group["bound"]) for column in ("best_lr", "edge")]
        cells.append(str((group["edge"] < 0.9 * group["bound"]).sum()))
        cells.append(aligned(align(group["lambda"].tolist(), group["best_lr"].tolist())))
        lines.append(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _three(values: pd.Series) -> str:
    return ", ".join(f"{values.quantile(share):.2f}" for share in (0.1, 0.5, 0.9))


def main() -> None:
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    found = table(settings())
    write_bytes(README, f"{before}{BEGIN}\n{found}\n{END}{rest.split(END)[1]}".encode())
    print(found)


if __name__ == "__main__":
    main()
