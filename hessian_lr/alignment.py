"""What many sweeps say about the classical theory: how best learning rates go with eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from .errors import RequestError
from .records import Record

_LEAST_POINTS = 3  # a line through two points leaves no degree of freedom for an error


@dataclass(frozen=True)
class Alignment(Record):
    """How best learning rates go with eigenvalues over several methods or models.

    Classical theory, η* ∝ 1/λ, is slope −1 and rank correlations +1.

    Attributes:
        slope: Of log10 η* on log10 λ by ordinary least squares; None for fewer than three points,
            or if all eigenvalues are equal.
        slope_low: Lower end of the slope's 95% confidence interval (Student's t, points − 2
            degrees of freedom); None if all η* are equal, whose scatter tells nothing.
        slope_high: Upper end of it.
        kendall_tau: Kendall's τ-b between 1/λ and η*; None for fewer than three points, of which it
            would be ±1 whatever they are, or if all λ or all η* are equal.
        spearman: Spearman's rank correlation between 1/λ and η*, likewise.
        r_squared: Share of log10 η*'s variance that the line explains.
        points: Number of pairs.
    """

    slope: float | None
    slope_low: float | None
    slope_high: float | None
    kendall_tau: float | None
    spearman: float | None
    r_squared: float | None
    points: int


def align(eigenvalues: Sequence[float], best_lrs: Sequence[float]) -> Alignment:
    """Fit log10 η* = slope · log10 λ + constant, and rank both.

    Args:
        eigenvalues: λ of each method or model.
        best_lrs: η* of each, in the same order.

    Raises:
        RequestError: the two differ in length, or a number is not positive and finite.
    """
    if len(eigenvalues) != len(best_lrs):
        raise RequestError(f"{len(eigenvalues)} eigenvalues do not pair with {len(best_lrs)} learning rates")
    for what, values in (("an eigenvalue", eigenvalues), ("a best learning rate", best_lrs)):
        for value in values:
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{what} must be a positive number to stand on a log scale, not {value!r}")
    points = len(eigenvalues)
    x, y = np.log10(eigenvalues), np.log10(best_lrs)
    tau = rho = slope = low = high = r_squared = None
    varied = points >= _LEAST_POINTS and np.ptp(x) > 0 and np.ptp(y) > 0
    if varied:  # a rank correlation with a constant is not defined
        tau = float(scipy.stats.kendalltau(-x, y).statistic)
        rho = float(np.clip(scipy.stats.spearmanr(-x, y).statistic, -1, 1))
    if points >= _LEAST_POINTS and np.ptp(x) > 0:
        line = scipy.stats.linregress(x, y)
        slope = float(line.slope)
        if varied:
            reach = float(scipy.stats.t.ppf(0.975, points - 2) * line.stderr)
            low, high, r_squared = slope - reach, slope + reach, float(line.rvalue**2)
    return Alignment(slope, low, high, tau, rho, r_squared, points)
