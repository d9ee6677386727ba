"""What a tool says of λ after each of its products, and when it has to stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from hessian_lr.records import write_json
from hessian_lr.spectrum.lanczos import dot

# Every tool is asked for λ to 5%.
TOLERANCE = 0.05


class LimitReached(Exception):
    """A tool has used up its products or its time."""


@dataclass
class Trace:
    """A tool's running record, kept on disk too, so that it outlives a process that is killed.

    Attributes:
        path: Where it is kept while the tool runs.
        max_products, max_seconds: Limits.
        products: One entry for each product: seconds since the tool began, its estimate of λ, and
            the residual of the estimate (null where the tool has none).
        stop: When the tool's own stopping rule was met, and with which λ.
        modules: For tools that take one module after another: what each one gave.
        notes: What a reader should know.
    """

    path: Path
    max_products: int
    max_seconds: float
    products: list[dict[str, Any]] = field(default_factory=list)
    stop: dict[str, Any] | None = None
    modules: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def check(self, products: bool = True) -> None:
        """Raise LimitReached if no further product may begin."""
        if products and len(self.products) >= self.max_products:
            raise LimitReached(f"stopped after {self.max_products} products")
        if self.seconds > self.max_seconds:
            raise LimitReached(f"stopped after {self.max_seconds:.0f} s")

    def product(self, estimate: float | None, residual: float | None = None) -> None:
        """Record a product that has just ended."""
        self.products.append({"seconds": self.seconds, "estimate": estimate, "residual": residual})
        write_json(self.path, self.to_dict())

    def stopped(self, value: float | None, products: int | None = None) -> None:
        """Record that the tool's own rule says: done. Only the first time counts."""
        if self.stop is None:
            count = len(self.products) if products is None else products
            self.stop = {"seconds": self.seconds, "products": count, "value": value}

    def to_dict(self) -> dict[str, Any]:
        return {"products": self.products, "stop": self.stop, "modules": self.modules, "notes": self.notes}


class RunningRitz:
    """Largest Ritz value from the vectors that a Lanczos tool multiplies with, one after another.

    Tools that do their Lanczos inside tell nothing while they run. Their products do: the basis vector
    q_k comes in, H·q_k goes out, α_k = q_k·H·q_k, β_k = q_{k+1}·H·q_k. Two vectors are kept.
    """

    def __init__(self) -> None:
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self._vector: Tensor | None = None
        self._rest: Tensor | None = None
        self._restarted = False

    def update(self, vector: Tensor, image: Tensor) -> tuple[float | None, float | None]:
        """(θ, residual) after the product ``image`` = H·``vector``; (None, None) once it was restarted."""
        if self._restarted:
            return None, None
        if self._rest is not None:
            beta, norm = dot(vector, self._rest), dot(self._rest, self._rest) ** 0.5
            self._restarted = abs(beta) < 0.99 * norm  # not the next vector of the same recurrence
            if self._restarted:
                return None, None
            self.betas.append(beta)
        alpha = dot(vector, image)
        self.alphas.append(alpha)
        rest = image - alpha * vector
        if self._vector is not None:
            rest -= self.betas[-1] * self._vector
        self._vector, self._rest = vector.clone(), rest
        values, vectors = eigh_tridiagonal(np.array(self.alphas), np.array(self.betas))
        return float(values[-1]), dot(rest, rest) ** 0.5 * abs(float(vectors[-1, -1]))
