"""Predictions for settings that the fit has not seen: a method, or a model, left out at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from .laws import Law

SCATTER = (
    0.5  # ln units: the residual's scale that the prior is weighed against, and where Huber's loss turns
)
CONSTANT = (-7.0, 10.0)


def fit(law: Law, table: pd.DataFrame) -> np.ndarray:
    """Constant and exponents (Huber loss, Gaussian priors), shape (1 + terms,)."""
    x, y = _design(law, table), np.log(table["best_lr"].to_numpy())
    means, spreads = np.array([CONSTANT, *law.terms.values()]).T
    loose = spreads > 0

    def residuals(free: np.ndarray) -> np.ndarray:
        weights = means.copy()
        weights[loose] = free
        # Times √2·… is not needed: both kinds of residual are in standard deviations.
        return np.concatenate([(y - x @ weights) / SCATTER, (free - means[loose]) / spreads[loose]])

    found = means.copy()
    found[loose] = least_squares(residuals, means[loose], loss="huber", f_scale=1.0).x
    return found


def predict(law: Law, weights: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """η̂ of each row, shape (rows,)."""
    return np.exp(_design(law, table) @ weights)


def usable(law: Law, table: pd.DataFrame) -> pd.Series:
    """Rows that have every quantity of the law, positive."""
    values = table[list(law.terms)] if law.terms else pd.DataFrame(index=table.index)
    return (values > 0).all(axis=1)


def left_out(law: Law, table: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """η̂ of each usable row from a fit to the other groups' rows; NaN where a quantity is missing."""
    out = pd.Series(np.nan, index=table.index)
    rows = usable(law, table)
    for group in groups.unique():
        inside = (groups == group) & rows
        others = table[(groups != group) & rows]
        if inside.any():
            out[inside] = predict(law, fit(law, others), table[inside])
    return out


def widths(predicted: pd.Series, table: pd.DataFrame, groups: pd.Series, coverage: float = 0.8) -> pd.Series:
    """Half-width f of each row's interval [η̂/f, η̂·f]: the quantile of the other groups' held-out errors.

    Conformal in that no error of the row's own group takes part in its width.
    """
    errors = np.abs(np.log(predicted / table["best_lr"]))
    out = pd.Series(np.nan, index=table.index)
    for group in groups.unique():
        others = np.sort(errors[(groups != group) & errors.notna()].to_numpy())
        rank = min(len(others) - 1, int(np.ceil(coverage * (len(others) + 1))) - 1)
        out[groups == group] = np.exp(others[rank])
    return out


def _design(law: Law, table: pd.DataFrame) -> np.ndarray:
    columns: Sequence[np.ndarray] = [np.log(table[name].to_numpy(dtype=float)) for name in law.terms]
    return np.column_stack([np.ones(len(table)), *columns])
