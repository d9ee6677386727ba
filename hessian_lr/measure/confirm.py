"""What is known of an eigenvalue once it was found: by further products, by other rows, and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..curvature.caveats import model_notes
from ..curvature.central import CentralOperator, Root, as_it_is
from ..curvature.loss_operator import LossOperator
from ..curvature.weight_gradients import zero_b
from ..digits import percent
from ..spectrum import Eigenvalue, Status, lanczos
from ..spectrum.lanczos import dot
from .how import Symmetric, vectors_of

# Products in float32 from an eigenvector found in bfloat16, whose rounding they take out.
REFINEMENTS = 4


def in_float32(
    rough: Eigenvalue,
    build: Callable[[torch.dtype, int | None], tuple[LossOperator, Symmetric]],
    search: Callable[[LossOperator, Symmetric], Eigenvalue],
    memory_budget: int | None,
    rtol: float,
) -> tuple[Eigenvalue, float | None, tuple[str, ...]]:
    """What was found in bfloat16, by products in float32; how far it was off, where that served; and notes.

    The operator that was built last is left as by ``verified``.

    Args:
        rough: What products in bfloat16 found, whose memory has been given back.
        build: Makes the loss's products in a precision and within a memory budget, and of them the matrix
            whose eigenvalue it is.
        search: Finds that from a random start.
        memory_budget: Of a whole search.
        rtol: As for ``sharpness``.
    """
    operator, matrix = build(torch.float32, 0)
    found = refined(rough, operator, matrix, rtol)
    if rough.status != "converged" or found.status == "converged":
        return found, abs(rough.value - found.value), ()
    left = percent(found.residual / abs(found.value) if found.value else math.inf)
    note = (
        f"bfloat16 did not serve: {REFINEMENTS} products in float32 from its eigenvector leave a "
        f"residual of {left} of θ; searched again in float32"
    )
    operator, matrix = build(torch.float32, memory_budget)
    return verified(search(operator, matrix), matrix, rtol), None, (note,)


def refined(rough: Eigenvalue, operator: LossOperator, matrix: Symmetric, rtol: float) -> Eigenvalue:
    """The estimate in the operator's precision: Lanczos steps from a vector found in a lower one.

    The first step is θ and ρ of the vector as it is, and where that meets rtol it is the only one.
    ``upper`` is that of the search, which had a random start, and as much more as its products were off along
    the vector. The operator, of whose products the matrix is made, is left as by ``verified``.
    """
    again = lanczos(
        matrix.matvec,
        operator.size,
        rtol=0.95 * rtol,
        max_products=REFINEMENTS,
        start=rough.vector,
        **vectors_of(operator),
    )
    better = again if again.products == 1 else verified(again, matrix, rtol)
    ended = rough.status == better.status == "converged"
    return replace(
        better,
        upper=_raised(rough, better.value),
        smallest=rough.smallest,
        products=rough.products + again.products,
        status="converged" if ended else "budget",
    )


def verified(found: Eigenvalue, operator: Symmetric, rtol: float) -> Eigenvalue:
    """The estimate with θ and ρ taken afresh from one more product with its vector.

    What Lanczos knows of its residual follows from its own recurrence; this does not, so products
    that are not quite linear or symmetric (bfloat16) are found out. The operator is left with
    ``batch_forms`` of the eigenvector.
    """
    return afresh(found, operator.matvec(found.vector), rtol)


def afresh(found: Eigenvalue, image: Tensor, rtol: float) -> Eigenvalue:
    """The estimate with θ and ρ from H·v of its vector, shape (n,); converged only if they say so too."""
    theta = dot(found.vector, image)
    difference = image - theta * found.vector
    fresh = replace(found, value=theta, residual=dot(difference, difference) ** 0.5)
    # With an exhausted Krylov space what is left is rounding, whatever the matrix's scale.
    good = found.residual == 0.0 or fresh.error <= rtol * abs(theta)
    status: Status = "converged" if found.status == "converged" and good else "budget"
    return replace(fresh, status=status, upper=_raised(found, theta))


def _raised(found: Eigenvalue, theta: float) -> float | None:
    """The bound from above, which took products to be exact, where better ones say θ.

    What they were off by along one vector estimates what they were off by elsewhere; it is no bound of it.
    """
    return None if found.upper is None else max(theta, found.upper + abs(found.value - theta))


def differences_checked(
    found: Eigenvalue,
    operator: LossOperator,
    direction: Tensor,
    rtol: float,
    root: Root = as_it_is,
) -> tuple[Eigenvalue, float | None]:
    """The estimate, not converged where products by differences are off by more than rtol of themselves.

    Products are those of root·H·root along ``direction``.
    """
    if not isinstance(operator, CentralOperator):
        return found, None
    error = operator.check(direction, root)
    return (found if error <= rtol else replace(found, status="budget")), error


def sampling_error(forms: Sequence[float], weights: Sequence[int]) -> float | None:
    """Standard error of the token-weighted mean of v·H_b·v over microbatches.

    √(m/(m−1)·Σ w_b²·(f_b − f̄)²) with w_b the share of labelled tokens: the linearised error of a
    ratio of sums over m clusters (Cochran, Sampling Techniques, 1977, section 6). None for m < 2.
    """
    m = len(forms)
    if m < 2:
        return None
    total = sum(weights)
    shares = [w / total for w in weights]
    mean = sum(w * f for w, f in zip(shares, forms, strict=True))
    return math.sqrt(m / (m - 1) * sum((w * (f - mean)) ** 2 for w, f in zip(shares, forms, strict=True)))


def spectrum_notes(found: Eigenvalue, operator: LossOperator) -> tuple[str, ...]:
    """What a reader should know of how an eigenvalue was obtained."""
    notes = []
    if (why := operator.note()) is not None:
        notes.append(why)
    notes += model_notes(operator.model)
    if found.status == "budget":
        relative = found.residual / abs(found.value) if found.value else math.inf
        notes.append(f"stopped after {found.products} products with a residual of {percent(relative)} of θ")
    return tuple(notes)


def saddle_note(found: Eigenvalue, model: nn.Module) -> tuple[str, ...]:
    """That λ is no curvature: at B = 0, where −λ lies opposite to it."""
    lowest, highest = found.smallest, found.value
    symmetric = lowest is not None and highest > 0 and abs(lowest + highest) < 0.05 * highest
    if not (symmetric and zero_b(model)):
        return ()
    return ("spectrum symmetric about 0: a saddle, λ is a gradient's spectral norm rather than a curvature",)
