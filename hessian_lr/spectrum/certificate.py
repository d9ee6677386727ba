"""How much larger than the Ritz value the largest eigenvalue can still be."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta as beta_distribution

CONFIDENCE = 0.95


def upper_bound(
    alphas: NDArray[np.float64], betas: NDArray[np.float64], size: int, confidence: float = CONFIDENCE
) -> float:
    """A number that the largest eigenvalue λ exceeds with probability ≤ 1 − confidence.

    The start vector q was uniform on the sphere, so its squared component along λ's eigenvector
    follows Beta(½, (n − 1)/2) and is ≥ t, its lower quantile, with the stated probability. The
    Lanczos coefficients fix the first 2m moments of q's spectral measure, and no measure with
    those moments has more mass at x than 1 / Σ_{k=0..m} p_k(x)², p_k the orthonormal Lanczos
    polynomials (the Christoffel function). Hence Σ p_k(λ)² ≤ 1/t, and the sum increases beyond
    the largest Ritz value: its crossing is the bound. The idea is that of van Dorsselaer,
    Hochstenbach and van der Vorst (SIAM J. Matrix Anal. Appl. 22, 2000), who use p_m alone.

    Unlike the a-priori bound of Kuczyński and Woźniakowski (1992) it needs no lower end of the
    spectrum and uses what was measured. It takes the products to be exact.

    Args:
        alphas: Diagonal of T, shape (m,).
        betas: Off-diagonal of T and the last residual norm, shape (m,), positive.
        size: n, the order of the matrix.
        confidence: Probability with which the bound holds, over the random start.
    """
    if size <= len(alphas):
        return float(np.linalg.eigvalsh(_tridiagonal(alphas, betas))[-1])
    log_limit = -math.log(beta_distribution.ppf(1 - confidence, 0.5, (size - 1) / 2))
    top = float(np.linalg.eigvalsh(_tridiagonal(alphas, betas))[-1])

    def excess(x: float) -> float:
        return _log_christoffel_sum(x, alphas, betas) - log_limit

    if excess(top) >= 0:
        # The Ritz vector itself already has as little of the start vector as chance allows.
        return top
    width = max(abs(top), float(betas.max()))
    while excess(top + width) < 0:
        width *= 2
    return float(brentq(excess, top, top + width, xtol=1e-12 * width))


def hidden_probability(x: float, alphas: NDArray[np.float64], betas: NDArray[np.float64], size: int) -> float:
    """The probability with which a uniformly random start vector hides an eigenvalue at x or above.

    An eigenvalue above the largest Ritz value is compatible with the coefficients only if the
    start's squared component along its eigenvector was at most 1 / Σ_{k=0..m} p_k(x)², and that
    component follows Beta(½, (n − 1)/2). ``upper_bound`` is the x at which this is 1 − confidence.

    Args:
        x: A number above the largest Ritz value.
        alphas, betas, size: As for ``upper_bound``.
    """
    if size <= len(alphas):
        return 0.0
    most = math.exp(-_log_christoffel_sum(x, alphas, betas))
    return float(beta_distribution.cdf(most, 0.5, (size - 1) / 2))


def _log_christoffel_sum(x: float, alphas: NDArray[np.float64], betas: NDArray[np.float64]) -> float:
    """log Σ_{k=0..m} p_k(x)², by the three-term recurrence with its scale taken out at each step."""
    before, now = 0.0, 1.0
    total, log_scale = 1.0, 0.0
    for k, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        after = ((x - alpha) * now - (betas[k - 1] if k else 0.0) * before) / beta
        before, now = now, after
        total += now * now
        if total > 1e200:
            log_scale += math.log(total)
            root = math.sqrt(total)
            before, now, total = before / root, now / root, 1.0
    return log_scale + math.log(total)


def _tridiagonal(alphas: NDArray[np.float64], betas: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
