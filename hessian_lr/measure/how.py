"""How a measurement is made, whatever is measured: precision, memory, randomness, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checkpoints import Checkpoints
from ..curvature.loss_operator import LossOperator
from ..precision import working_type
from ..spectrum import Eigenvalue, lanczos, power_iteration
from ..spectrum.lanczos import Progress

ALGORITHMS = {"lanczos": lanczos, "power": power_iteration}
#: Called with (stage, done, total, detail).
Report = Callable[[str, int, int, str], None]


class Symmetric(Protocol):
    """A symmetric matrix known by its products."""

    def matvec(self, vector: Tensor, /) -> Tensor:
        """The matrix times a vector of shape (n,)."""
        ...


@dataclass(frozen=True)
class How:
    """What the parts of a measurement have in common.

    Attributes:
        dtype: Precision of the products: float32, bfloat16 (autocast), or float64.
        memory_budget: Bytes that kept graphs may fill (0: rebuild all; None: decide here).
        seed: Seed of random start vectors.
        progress: Called after each product with (products, max_products, θ, ρ).
        checkpoints: Where the state of searches is kept, so that the same call goes on after a kill.
    """

    dtype: torch.dtype = torch.float32
    memory_budget: int | None = None
    seed: int = 0
    progress: Progress | None = None
    checkpoints: Checkpoints | None = None

    def search(
        self,
        operator: LossOperator,
        matrix: Symmetric,
        *more: Tensor,
        stage: str,
        rtol: float,
        max_products: int,
        algorithm: str = "lanczos",
    ) -> Eigenvalue:
        """The largest eigenvalue, from a random start.

        Args:
            operator: The loss's products.
            matrix: What has the eigenvalue: the operator itself, or it in an optimizer's geometry.
            more: Tensors beside the weights and the sample that decide the matrix's products.
            stage: What its checkpoint is called.
            rtol, max_products: As for ``spectrum.lanczos``, but for θ and ρ that are then measured afresh.
            algorithm: One of ``ALGORITHMS``.
        """
        # A little tighter than asked, so that the residual measured afresh still meets rtol.
        asked: dict[str, Any] = {"rtol": 0.8 * rtol, "max_products": max_products, "seed": self.seed}
        kept: dict[str, Any] = {}
        if self.checkpoints is not None and algorithm == "lanczos":
            kept["checkpoint"] = self.checkpoints.of(operator, *more, stage=stage, **asked)
        return ALGORITHMS[algorithm](
            matrix.matvec, operator.size, **asked, **kept, **vectors_of(operator), progress=self.progress
        )


def vectors_of(operator: LossOperator) -> dict[str, Any]:
    """Where an eigensolver's vectors lie beside an operator's, and in which type."""
    return {"device": operator.device, "dtype": working_type(operator.parameters[0])}


def shown(report: Report | None, stage: str) -> Progress | None:
    """An eigensolver's progress as a stage of the report."""
    if report is None:
        return None
    return lambda done, total, theta, residual: report(
        stage, done, total, f"θ {theta:.3g}, ρ {residual / max(abs(theta), 1e-30):.0%}"
    )
