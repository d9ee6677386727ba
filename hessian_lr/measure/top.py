"""The several largest eigenvalues of an adapter's Hessian, with their directions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..curvature.caveats import model_notes
from ..curvature.central import CentralOperator, twice_or_central
from ..curvature.loss_operator import LossOperator
from ..digits import percent
from ..errors import RequestError, unknown_name
from ..records import UNWRITTEN, Result
from ..setting import check_counts
from ..spectrum import Eigenvalues, block_lanczos
from ..spectrum.lanczos import Progress
from ..spectrum.stopping import check_stopping
from .confirm import REFINEMENTS
from .cost import peak_rss_bytes
from .how import vectors_of
from .joint import OPERATORS

# Products for each eigenvalue, at most, where no limit is given.
EACH = 32


@dataclass(frozen=True)
class TopEigenvalues(Result):
    """The several largest eigenvalues of a loss's Hessian over an adapter's parameters.

    Attributes:
        values: Ritz values θ_1 ≥ θ_2 ≥ …: θ_i is at most the i-th largest eigenvalue, counted as often as it
            occurs, up to the rounding of the products.
        residuals: ρ_i = ‖H·v_i − θ_i·v_i‖; some eigenvalue lies within ρ_i of θ_i.
        difference_error: Where products are central differences, how far the one with v_1 may be off as a
            share of itself (see ``CentralOperator.check``); None where they are exact.
        status: ``"converged"`` (every ρ_i is at most rtol times the largest of them, and so is
            ``difference_error``) or ``"budget"`` (stopped at the limit; what θ_i and ρ_i say holds, as far as
            products do).
        matvecs: Products spent with single vectors: a block of k vectors counts k.
        gradient_equivalents: All work, in gradients of the loss over the sample.
        seconds: Wall time.
        peak_rss_bytes: The process's largest resident memory so far.
        tokens: Tokens of the sample, padding included.
        parameters: n, the number of trainable parameters.
        notes: What a reader should know of how they were obtained.
        vectors: Orthonormal v_i as columns, shape (n, count), in the order of the model's trainable
            parameters; not in the JSON, so None in what is read from it.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    status: str
    matvecs: int
    gradient_equivalents: float
    seconds: float
    peak_rss_bytes: int
    tokens: int
    parameters: int
    notes: tuple[str, ...] = ()
    difference_error: float | None = None
    vectors: Tensor | None = field(default=None, repr=False, compare=False, metadata=UNWRITTEN)

    @property
    def relative_residual(self) -> float:
        """The largest residual as a share of the eigenvalue largest in size; infinite where all are 0."""
        return _relative(self.residuals, self.values)


def top_eigenvalues(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    count: int = 5,
    rtol: float = 0.05,
    max_products: int | None = None,
    operator: str = "hessian",
    dtype: torch.dtype = torch.float32,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TopEigenvalues:
    """The ``count`` largest eigenvalues of the loss Hessian over the model's trainable parameters.

    By block Lanczos with blocks of ``count`` vectors, so that an eigenvalue that occurs several times is
    found as often: at B = 0 plain LoRA's largest come in clusters of r. Where graphs are rebuilt, all of a
    block share each: k products cost k + 1 gradients instead of 2k. The model, its modes, the random state
    and global flags are left as they were found.

    Products in bfloat16 only find the directions: values and residuals are those of float32 products with
    them. Where these do not meet rtol a few blocks in float32 follow, and where these do not help the search
    is done again in float32.

    Args:
        model: A causal language model with an adapter: what requires a gradient is measured.
        batches: The sample, as for ``sharpness``.
        count: How many eigenvalues.
        rtol: Stop when every residual is at most this share of the largest eigenvalue found.
        max_products: Stop before more products than this, at least 2·count − 1; 32·count if not given, and up
            to 4·count more in float32 after a search in bfloat16. Each is a vector of n numbers in memory.
        operator: As for ``sharpness``.
        dtype: Precision of the products: float32, bfloat16 (autocast), or float64.
        memory_budget: Bytes that kept graphs may fill (0: rebuild all; None: decide here).
        seed: Seed of the random start block.
        progress: Called after each block with (products, max_products, θ_count, ρ_count).

    Raises:
        RequestError: as ``sharpness``; count above the number of trainable parameters, or too few products.
        NonFiniteError: the loss or a product is NaN or infinite.
    """
    if operator not in OPERATORS:
        raise unknown_name("operator", operator, OPERATORS)
    check_counts(count=count, seed=seed)
    most = EACH * count if max_products is None else max_products
    check_stopping(rtol, most)
    if most < 2 * count - 1:
        raise RequestError(
            f"{count} eigenvalues take at least {2 * count - 1} products, and max_products is {most}: "
            "ask for fewer, or allow more products"
        )

    def measure(make: Callable[..., LossOperator]) -> TopEigenvalues:
        began = time.perf_counter()
        used: list[LossOperator] = []
        notes: list[str] = []

        def build(kind: torch.dtype, budget: int | None) -> LossOperator:
            used.append(make(model, batches, dtype=kind, memory_budget=budget))
            return used[-1]

        def search(matrix: LossOperator, limit: int = most, start: Tensor | None = None) -> Eigenvalues:
            return block_lanczos(
                matrix.matmat,
                matrix.size,
                count=count,
                block=count,
                rtol=rtol,
                max_products=limit,
                seed=seed,
                start=start,
                progress=progress,
                **vectors_of(matrix),
            )

        found = search(build(dtype, memory_budget))
        if used[0].dtype is torch.bfloat16:
            used[0].release()
            rough = found
            # One block, where that serves.
            found = search(build(torch.float32, 0), REFINEMENTS * count, rough.vectors)
            if rough.status == "converged" != found.status:
                notes.append(
                    f"bfloat16 did not serve: {REFINEMENTS} blocks in float32 from its directions leave "
                    f"{_left(found)}; searched again in float32"
                )
                found = search(build(torch.float32, memory_budget))
        found, error = _checked(found, used[-1], rtol)
        used[-1].release()
        how = used[0].note()
        notes[:0] = [*([] if how is None else [how]), *model_notes(model)]
        if max(found.residuals) > rtol * max(map(abs, found.values)):
            spent = sum(one.cost.matvecs for one in used)
            notes.append(f"stopped after {spent} products with {_left(found)}")
        return TopEigenvalues(
            values=found.values,
            residuals=found.residuals,
            status=found.status,
            notes=tuple(notes),
            difference_error=error,
            vectors=found.vectors,
            **_spent(used, began),
        )

    return twice_or_central(measure) if operator == "hessian" else measure(OPERATORS[operator])


def _checked(found: Eigenvalues, matrix: LossOperator, rtol: float) -> tuple[Eigenvalues, float | None]:
    """Not converged where products by differences are off by more than rtol of themselves."""
    if not isinstance(matrix, CentralOperator):
        return found, None
    error = matrix.check(found.vectors[:, 0])
    return (found if error <= rtol else replace(found, status="budget")), error


def _left(found: Eigenvalues) -> str:
    return f"residuals up to {percent(_relative(found.residuals, found.values))} of the largest"


def _relative(residuals: Sequence[float], values: Sequence[float]) -> float:
    largest = max(map(abs, values))
    return max(residuals) / largest if largest else math.inf


def _spent(used: Sequence[LossOperator], began: float) -> dict[str, Any]:
    return {
        "matvecs": sum(one.cost.matvecs for one in used),
        "gradient_equivalents": round(sum(one.cost.gradient_equivalents for one in used), 3),
        "seconds": round(time.perf_counter() - began, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "tokens": used[0].tokens,
        "parameters": used[0].size,
    }
