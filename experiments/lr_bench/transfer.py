"""How best learning rates move from one setting to another: `python -m experiments.lr_bench.transfer`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.predict.fit import conformal
from hessian_lr.predict.transfer import Transfer, formula, quantities
from hessian_lr.setting import Setting

from .evaluate import scored
from .table import read

NAMES = ("rank", "scaling", "batch_size", "steps")
# Ridge: a priori an exponent or a method's offset is 0 ± SCATTER / √RIDGE = 0.6.
RIDGE = 0.7


def transfer_law(table: pd.DataFrame) -> Transfer:
    """The law from all settings; its range from pairs of settings of a model that was left out."""
    weights, names = _fit(table)
    rows = pd.DataFrame([quantities(_setting(row)) for row in table.to_dict("records")])
    return Transfer(
        exponents=dict(zip(NAMES, weights[: len(NAMES)].tolist(), strict=True)),
        methods=dict(zip(names, weights[len(NAMES) :].tolist(), strict=True)),
        log_half_width=_widest(table, same_method=True),
        log_half_width_method=_widest(table, same_method=False),
        settings=len(table),
        source=f"ridge regression over {len(table)} settings, a constant for each model, data and modules "
        "(experiments/lr_bench)",
        domain={name: [float(rows[name].min()), float(rows[name].max())] for name in NAMES},
    )


def _widest(table: pd.DataFrame, same_method: bool) -> float:
    """The 80% quantile of ``pair_errors`` of the model where it is largest: a user's is another one."""
    errors = [pair_errors(table, model, same_method) for model in table["model"].unique()]
    # A model with one setting, or one method, has no such pair.
    return max(conformal(one) for one in errors if len(one))


def pair_errors(table: pd.DataFrame, model: str, same_method: bool | None = None) -> np.ndarray:
    """|ln(η̂ / η*)| of pairs of ``model``'s settings with the same modules, from the other models' fit.

    Args:
        table: All settings.
        model: The one that is left out.
        same_method: Only pairs of one method, or only of two; None: both.
    """
    weights, names = _fit(table[table["model"] != model])
    mine = table[table["model"] == model]
    rest = np.log(mine["best_lr"].to_numpy()) - _design(mine, names) @ weights
    first, second = np.triu_indices(len(mine), 1)
    alike = mine["target_modules"].to_numpy()
    method = _methods(mine)
    known = np.isin(method, names)
    pairs = (alike[first] == alike[second]) & known[first] & known[second]
    if same_method is not None:
        pairs &= (method[first] == method[second]) == same_method
    return np.abs(rest[first] - rest[second])[pairs]


def copied_errors(table: pd.DataFrame, model: str, same_method: bool) -> np.ndarray:
    """The same pairs' errors of one who takes the other setting's learning rate as it is."""
    mine = table[table["model"] == model]
    logs, alike, method = mine["best_lr"].to_numpy(), mine["target_modules"].to_numpy(), _methods(mine)
    first, second = np.triu_indices(len(mine), 1)
    pairs = (alike[first] == alike[second]) & ((method[first] == method[second]) == same_method)
    return np.abs(np.log(logs[first]) - np.log(logs[second]))[pairs]


def _fit(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    names = sorted(set(_methods(table)))
    x, y = _design(table, names), np.log(table["best_lr"].to_numpy())
    # What model, data and modules add is taken out of both sides.
    groups = table.groupby(["model", "data", "target_modules"]).ngroup().to_numpy()
    for group in np.unique(groups):
        inside = groups == group
        x[inside] -= x[inside].mean(axis=0)
        y[inside] -= y[inside].mean()
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y), names


def _design(table: pd.DataFrame, names: list[str]) -> np.ndarray:
    rows = []
    for row in table.to_dict("records"):
        setting = _setting(row)
        known = quantities(setting)
        rows.append([math.log(known[name]) for name in NAMES] + [formula(setting) == name for name in names])
    return np.array(rows, dtype=float)


def _methods(table: pd.DataFrame) -> np.ndarray:
    return np.array([formula(_setting(row)) for row in table.to_dict("records")])


def _setting(row: dict[str, Any]) -> Setting:
    names = ("method", "rank", "alpha", "batch_size", "steps")
    return Setting(**{name: row[name] for name in names})


def told(table: pd.DataFrame) -> str:
    """Median and 90% factor, by the law and by copying, each model left out."""
    lines = [
        "| model left out | to | pairs | transferred, median | p90 | copied, median | p90 |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in table["model"].unique():
        for same, word in ((True, "the same method"), (False, "another method")):
            by_law = np.exp(pair_errors(table, model, same))
            copied = np.exp(copied_errors(table, model, same))
            lines.append(
                f"| {model} | {word} | {len(by_law)} "
                f"| {np.median(by_law):.2f} | {np.quantile(by_law, 0.9):.2f} "
                f"| {np.median(copied):.2f} | {np.quantile(copied, 0.9):.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(told(scored(read()[0])))
