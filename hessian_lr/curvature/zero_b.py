"""The largest eigenvalue of H at B = 0, sought over B alone.

There H is [[0, C], [Cᵀ, M]] over (A, B), C known from the gradient and M = H_BB known by its products.
An eigenvector's A side follows from its B side: x_A = C·x_B / λ. So for a basis V over B the best
vector of the form (x_A, V·b), x_A free, comes from an eigenproblem of twice V's size, at one product
with M a basis vector; and r = M·x_B + CᵀC·x_B / θ − θ·x_B is all that is left of H·x − θ·x.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..spectrum.lanczos import BREAKDOWN, dot
from .ceiling import CouplesBoth


class ZeroBSearch:
    """The larger end of H on {(x_A, V·b)}: V an orthonormal basis over B, x_A any vector over A.

    Attributes:
        theta: θ, the largest Rayleigh quotient of H there; 0 before the first product.
        rho: ρ, the residual's length.
        share_of_a: Of the unit vector with that quotient, the squared length of its A side.
    """

    def __init__(self, matvec: Callable[[Tensor], Tensor], coupling: CouplesBoth) -> None:
        self._matvec, self._coupling = matvec, coupling
        self._basis: list[Tensor] = []
        self._images: list[Tensor] = []
        self._a_sides: list[Tensor] = []
        self.theta = self.rho = self.share_of_a = 0.0

    @property
    def products(self) -> int:
        """Products with M so far."""
        return len(self._basis)

    @property
    def estimate(self) -> float:
        """θ after one more vector, the residual's, if its own quotient were zero."""
        return plane(self.theta, self.rho)

    def multiply(self, vector: Tensor) -> Tensor:
        """M·v, and what of v is new goes into the basis, at one product; θ and ρ follow.

        What is not new is known: M·v = M·V·(Vᵀv) + ‖v'‖·M·(v'/‖v'‖), v' = v − V·Vᵀv.
        """
        rest, image = vector, torch.zeros_like(vector)
        for _ in range(2):
            for column, known in zip(self._basis, self._images, strict=True):
                part = dot(column, rest)
                rest = rest - part * column
                image += part * known
        length = norm(rest)
        if length <= BREAKDOWN * torch.finfo(vector.dtype).eps * norm(vector):
            return image
        v = rest / length
        self._basis.append(v)
        self._images.append(self._matvec(v).to(v.dtype))
        self._a_sides.append(self._coupling.to_a(v))
        self._solve()
        return image + length * self._images[-1]

    def _solve(self) -> None:
        curvature = _gram(self._basis, self._images)
        # On orthonormal coordinates of the A sides H is [[0, K^½], [K^½, Vᵀ·M·V]], K = (CV)ᵀ(CV).
        squares, axes = np.linalg.eigh(_gram(self._a_sides, self._a_sides))
        root = axes * np.sqrt(np.clip(squares, 0, None)) @ axes.T
        values, vectors = np.linalg.eigh(np.block([[np.zeros_like(root), root], [root, curvature]]))
        self.theta = float(values[-1])
        weights = vectors[len(self._basis) :, -1]
        x_b, image, a_side = (_combine(weights, of) for of in (self._basis, self._images, self._a_sides))
        # The A part of H·x − θ·x is zero, because x_A = C·x_B / θ.
        self.rho = norm(image + self._coupling.to_b(a_side) / self.theta - self.theta * x_b)
        self.share_of_a = 1 - float(weights @ weights)


def plane(quotient: float, coupled: float) -> float:
    """The larger eigenvalue of [[q, c], [c, 0]]."""
    return 0.5 * (quotient + math.hypot(quotient, 2 * coupled))


def _gram(left: list[Tensor], right: list[Tensor]) -> NDArray[np.float64]:
    products = np.array([[dot(a, b) for b in right] for a in left])
    return 0.5 * (products + products.T)


def _combine(weights: NDArray[np.float64], columns: list[Tensor]) -> Tensor:
    total = torch.zeros_like(columns[0])
    for weight, column in zip(weights, columns, strict=True):
        total += float(weight) * column
    return total


def norm(vector: Tensor) -> float:
    """√(Σ v²), summed in float64."""
    return math.sqrt(dot(vector, vector))
