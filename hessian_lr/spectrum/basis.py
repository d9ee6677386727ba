"""An orthonormal basis held as the rows of one tensor, with sums in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of the basis that are widened to float64 at a time: few enough to stay in a processor's
# cache, enough to make each call worth its overhead.
_CHUNK_ELEMENTS = 1 << 19


class Basis:
    """k orthonormal vectors of length n, stored in the given type; every sum runs in float64.

    Room for more is made by doubling; no float64 copy of the whole is ever made.

    Args:
        size: n.
        device: Where the vectors live.
        dtype: Their type, float32 or float64.
        room: How many vectors there is room for from the start.
    """

    def __init__(self, size: int, device: torch.device | str, dtype: torch.dtype, room: int = 0) -> None:
        self._store = torch.empty(room, size, device=device, dtype=dtype)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Tensor:
        """The vectors, shape (k, n): a view."""
        return self._store[: self._count]

    def shorten(self, count: int) -> None:
        """Keep only the first ``count`` vectors, and the room of all."""
        self._count = count

    def append(self, vector: Tensor) -> None:
        """Add a vector of shape (n,), already orthonormal to the others."""
        if self._count == len(self._store):
            grown = self._store.new_empty(max(4, 2 * self._count), self._store.shape[1])
            grown[: self._count] = self._store
            self._store = grown
        self._store[self._count] = vector
        self._count += 1

    def project(self, vectors: Tensor) -> Tensor:
        """Inner products with b vectors of shape (b, n): shape (k, b), float64."""
        products = torch.zeros(self._count, len(vectors), device=vectors.device, dtype=torch.float64)
        for columns in self._chunks():
            products += self.rows[:, columns].double() @ vectors[:, columns].double().T
        return products

    def combine(self, coefficients: Tensor) -> Tensor:
        """The b sums Σ_k c_kb·q_k, c of shape (k, b) in float64: shape (b, n), in the basis's type."""
        sums = self._store.new_empty(coefficients.shape[1], self._store.shape[1])
        for columns in self._chunks():
            sums[:, columns] = coefficients.T @ self.rows[:, columns].double()
        return sums

    def orthogonalise(self, vectors: Tensor) -> Tensor:
        """Take out, in place, what b float64 vectors of shape (b, n) have in the basis's span.

        Returns:
            The inner products taken out, shape (k, b).
        """
        total = torch.zeros(self._count, len(vectors), device=vectors.device, dtype=torch.float64)
        # Once is not enough, twice is: the second pass removes what rounding left of the first.
        for _ in range(2):
            products = self.project(vectors)
            for columns in self._chunks():
                vectors[:, columns] -= products.T @ self.rows[:, columns].double()
            total += products
        return total

    def _chunks(self) -> Iterator[slice]:
        size = self._store.shape[1]
        step = max(1, _CHUNK_ELEMENTS // max(1, self._count))
        for start in range(0, size, step):
            yield slice(start, start + step)
