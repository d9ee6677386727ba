"""Eigenvalues that cross while they are followed, in matrices made up for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hessian_lr.curvature import Cost
from hessian_lr.measure import SharpnessTracker, track

SIZE, LARGE, UPDATES = 3_000, 12, 16
# By how much the eigenvectors of the large eigenvalues turn from one update to the next.
TURNS = (0.05, 0.3)


class Made:
    """A bulk of 3,000 eigenvalues and twelve large ones on top, as an operator that a tracker takes."""

    loss, device = 0.0, torch.device("cpu")

    def __init__(self, bulk: Tensor, vectors: Tensor, values: Tensor) -> None:
        self.size, self.parameters, self.cost = len(bulk), [bulk], Cost()
        self.bulk, self.vectors, self.values = bulk, vectors, values

    def matvec(self, vector: Tensor) -> Tensor:
        """The matrix times a vector of shape (n,)."""
        return self.vectors @ (self.values * (self.vectors.T @ vector)) + self.bulk * vector

    @property
    def largest(self) -> float:
        """λ within the large eigenvectors' span: the bulk below moves it by less than 1%."""
        small = self.vectors.T @ (self.bulk[:, None] * self.vectors) + torch.diag(self.values)
        return float(torch.linalg.eigvalsh(small)[-1])


def matrices(seed: int, turn: float) -> Iterator[Made]:
    """One at each update: the second eigenvalue rises from 0.7 to 1.4, past the first's 1."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    vectors, bulk = torch.linalg.qr(noise(SIZE, LARGE))[0], 0.05 * noise(SIZE).abs()
    others = [0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, -0.5, -0.3, 0.2]
    for risen in torch.linspace(0.7, 1.4, UPDATES).tolist():
        vectors = torch.linalg.qr(vectors + turn / SIZE**0.5 * noise(SIZE, LARGE))[0]
        yield Made(bulk, vectors, torch.tensor([1.0, risen, *others], dtype=torch.float64))


def followed(second: float, seeds: range) -> list[dict[str, Any]]:
    """What trackers say of each, with so much of the second Ritz vector in their starts.

    Args:
        second: That share; the package's own is ``track._SECOND``.
        seeds: Of the matrices; each is followed by three trackers.
    """
    rows = []
    kept, kept_operator = track._SECOND, track.HessianOperator
    try:
        track._SECOND = second
        track.HessianOperator = lambda made, *_, **__: made  # type: ignore[assignment, misc]
        for seed in seeds:
            for turn in TURNS:
                trackers = [SharpnessTracker([], seed=own) for own in range(3)]
                for update, made in enumerate(matrices(seed, turn)):
                    for tracker in trackers:
                        found = tracker.update(made, update)  # type: ignore[arg-type]
                        rows.append(
                            {"second": second, "turn": turn, "update": update}
                            | {"ratio": found.lambda_max / made.largest, "products": found.matvecs}
                        )
    finally:
        track._SECOND, track.HessianOperator = kept, kept_operator  # type: ignore[misc]
    return rows
