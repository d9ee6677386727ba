"""The tridiagonal matrix that Lanczos makes of a large one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor


@dataclass
class Tridiagonal:
    """T = Qᵀ·H·Q after m Lanczos steps.

    Attributes:
        alphas: Its diagonal, m numbers.
        betas: Its off-diagonal, and last the length of what H·q_m has outside the basis.
        exhausted: The Krylov space is all of space, or invariant to the last bit: T's eigenvalues are H's,
            up to rounding.
        following: q_{m+1}, shape (n,), from which the next step starts; None where there is none, or it
            may be rounding alone.
    """

    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    exhausted: bool = False
    following: Tensor | None = None

    def eigh(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ritz values in ascending order, shape (m,), and T's eigenvectors, shape (m, m)."""
        values, vectors = eigh_tridiagonal(np.array(self.alphas), np.array(self.betas[:-1]))
        return np.asarray(values, dtype=np.float64), np.asarray(vectors, dtype=np.float64)

    def residuals(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """ρ = β_m·|s_m| of each Ritz pair (Parlett 1980), shape (m,)."""
        rest = 0.0 if self.exhausted else self.betas[-1]
        return rest * np.abs(vectors[-1])
