"""When a Lanczos iteration may end: the rule, and what may be asked of it."""

from __future__ import annotations

from numbers import Real

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..setting import check_counts
from .certificate import hidden_probability

# With no more than this probability the start vector hides an eigenvalue more than rtol above θ.
MAX_HIDDEN = 0.2


def error_estimate(residual: float, gap: float) -> float:
    """min(ρ, ρ²/gap), or ρ where the gap is 0."""
    return min(residual, residual**2 / gap) if gap > 0 else residual


def settled(
    theta: float,
    error: float,
    alphas: NDArray[np.float64],
    betas: NDArray[np.float64],
    size: int,
    rtol: float,
) -> bool:
    """Whether the Ritz value θ, from a uniformly random start, counts as λ to rtol.

    Its error, ``error_estimate``, must be at most rtol·|θ|: then some eigenvalue is near. And the start must
    hide one above θ + rtol·|θ| with a probability of at most 20% (``hidden_probability``): then it is the
    largest. A small error alone is a statement about the Ritz values already there, and early on θ is
    often a blend of eigenvalues, or not yet the largest.

    Args:
        theta: Largest Ritz value.
        error: Its estimated distance to an eigenvalue.
        alphas, betas: T's diagonal, and its off-diagonal with the last residual norm, shape (m,).
        size: n, the order of the matrix.
        rtol: Relative error of λ.
    """
    allowed = rtol * abs(theta)
    return error <= allowed and hidden_probability(theta + allowed, alphas, betas, size) <= MAX_HIDDEN


def check_stopping(rtol: float, max_products: int) -> None:
    """Refuse a tolerance or a limit under which no iteration could end well."""
    if not isinstance(rtol, Real) or not 0 < rtol < 1:
        raise RequestError(f"rtol must lie between 0 and 1, not {rtol!r}")
    check_counts(max_products=max_products)
