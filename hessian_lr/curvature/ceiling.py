"""How large λ at B = 0 can still be: an upper end that uses all that is known of the coupling.

λ solves λ = λ_max(M + CᵀC/λ), M = H_BB, and only M costs products. Take z = CᵀC/x² for an x > 0 and a
weight W = p(z), p a polynomial that is positive on z's spectrum, which lies in [0, σ²/x²]. If ν ≥ 0
bounds λ_max(W·M·W), then M ≼ ν·p(z)⁻², so λ is at most the largest ν/p(z)² + x²z/λ, that is,

    λ  ≤  max over 0 ≤ z ≤ σ²/x² of ½·(q + √(q² + 4x²z)),   q = ν/p(z)².

With p = 1 this is the bracket of M and C apart, λ ≤ ½·(ν + √(ν² + 4σ²)) with ν ≥ λ_max(M), which is up
to 1.6 times λ because M's top need not lie where C's does. With p = (1 − z)^(−½) and x = λ it is sharp:
λ ≤ x just when λ_max(W·M·W) ≤ x. So p is a polynomial close to that, x a guess of λ, which may be bad
but not unsafe, and ν comes from Lanczos with a random start and its certificate. Where λ is mostly
coupling, W·M·W's spectrum lies far below x, and two to four products show that nothing reaches x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from ..spectrum.basis import Basis
from ..spectrum.certificate import upper_bound
from ..spectrum.lanczos import random_vectors, tridiagonalise

# Of p: twice as many products with C and with Cᵀ are needed for one with M.
_DEGREE = 3
# Points at which the maximum over z is taken; the function is smooth.
_GRID = 200


class CouplesBoth(Protocol):
    """C as products: what ``Coupling`` has of a model."""

    def to_a(self, over_b: Tensor, /) -> Tensor:
        """C·v, over all A, for v over all B."""

    def to_b(self, over_a: Tensor, /) -> Tensor:
        """Cᵀ·v, over all B, for v over all A."""


@dataclass(frozen=True)
class Ceiling:
    """What a Lanczos run says of λ from above.

    Attributes:
        upper: λ is at most this, with the probability asked for over the random start.
        least: No more products of this run will bring ``upper`` below this.
    """

    upper: float
    least: float


def ceilings(
    multiply: Callable[[Tensor], Tensor],
    coupling: CouplesBoth,
    sigma: float,
    guess: float,
    like: Tensor,
    confidence: float,
    generator: torch.Generator,
) -> Iterator[Ceiling]:
    """A Lanczos run's upper ends, one more product with M each; it ends if the Krylov space does.

    All of a run hold together with the stated probability, for exact products and a guess that does
    not depend on this run's start.

    Args:
        multiply: v ↦ M·v over B.
        coupling: C.
        sigma: σ > 0, the largest singular value of C.
        guess: x > σ, about λ.
        like: Any vector over B: its length, type and device are taken.
        confidence: The probability.
        generator: Draws the random start.
    """
    size, device, dtype = like.numel(), like.device, like.dtype
    most = (sigma / guess) ** 2
    ideal = Chebyshev.interpolate(lambda z: (1 - z) ** -0.5, _DEGREE, domain=[0, most])
    coefficients = [float(c) for c in ideal.convert(kind=Polynomial).coef]
    z = np.linspace(0, most, _GRID)
    squares = ideal(z) ** 2

    def weighted(v: Tensor) -> Tensor:
        # Horner's scheme.
        total = coefficients[-1] * v
        for coefficient in coefficients[-2::-1]:
            total = coefficient * v + coupling.to_b(coupling.to_a(total)) / guess**2
        return total

    def over(nu: float) -> float:
        q = max(nu, 0.0) / squares
        return float(0.5 * (q + np.hypot(q, 2 * guess * np.sqrt(z))).max())

    start = random_vectors(1, size, generator)[0]
    start = (start / start.norm()).to(device, dtype)
    for t in tridiagonalise(lambda v: weighted(multiply(weighted(v))), Basis(size, device, dtype), start):
        values, _ = t.eigh()
        top = float(values[-1])
        if t.exhausted:
            yield Ceiling(over(top), over(top))
        else:
            bound = upper_bound(np.array(t.alphas), np.array(t.betas), size, confidence)
            yield Ceiling(over(bound), over(top))
