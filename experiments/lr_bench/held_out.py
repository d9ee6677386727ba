"""Predictions for settings that the fit has not seen: a method, or a model, left out at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hessian_lr.predict.fit import conformal, robust_fit

from .laws import Law


def fit(law: Law, table: pd.DataFrame) -> np.ndarray:
    """Constant and exponents, shape (1 + terms,); the constant is free."""
    x, y = _design(law, table), np.log(table["best_lr"].to_numpy())
    means, spreads = np.array([(0.0, np.inf), *law.terms.values()]).T
    loose = spreads > 0
    weights = means.copy()
    rest = y - x[:, ~loose] @ means[~loose]
    weights[loose] = robust_fit(x[:, loose], rest, means[loose], spreads[loose])
    return weights


def predict(law: Law, weights: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """η̂ of each row, shape (rows,)."""
    return np.exp(_design(law, table) @ weights)


def usable(law: Law, table: pd.DataFrame) -> pd.Series:
    """Rows that have every quantity of the law, positive."""
    return (table[list(law.terms)] > 0).all(axis=1)


def left_out(law: Law, table: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """η̂ of each usable row from a fit to the other groups' rows; NaN where a quantity is missing, or all."""
    out = pd.Series(np.nan, index=table.index)
    rows = usable(law, table)
    for group in groups.unique():
        inside = (groups == group) & rows
        others = table[(groups != group) & rows]
        if inside.any() and len(others):
            out[inside] = predict(law, fit(law, others), table[inside])
    return out


def widths(law: Law, table: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """Half-width f of each row's 80% interval [η̂/f, η̂·f], from the other groups' held-out errors.

    No answer of the row's own group takes part in its width: those errors are of fits without both groups.
    """
    out = pd.Series(np.nan, index=table.index)
    for group in groups.unique():
        others = table[groups != group]
        errors = np.abs(np.log(left_out(law, others, groups[groups != group]) / others["best_lr"])).dropna()
        if len(errors):  # with two groups there is no fit without both
            out[groups == group] = np.exp(conformal(errors.to_numpy()))
    return out


def _design(law: Law, table: pd.DataFrame) -> np.ndarray:
    columns = [np.log(table[name].to_numpy(dtype=float)) for name in law.terms]
    return np.column_stack([np.ones(len(table)), *columns])
