"""The Lanczos method with full reorthogonalisation, for the algebraically largest eigenvalue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import RequestError
from .basis import Basis
from .certificate import CONFIDENCE, upper_bound
from .checkpoint import Checkpoint
from .stopping import check_stopping, error_estimate, settled
from .tridiagonal import Tridiagonal

Matvec = Callable[[Tensor], Tensor]
Status = Literal["converged", "budget"]
Progress = Callable[[int, int, float, float], None]

# A new basis vector shorter than this, against the matrix's own size, may be rounding, so that the
# iteration ends. Products in float32 and bfloat16 cannot be told from zero below their own precision, so
# the floor follows the vectors' type. What is shorter need not be rounding, though: beside an eigenvalue
# of −1e5 all others of 1 are. So it counts in ρ and in the bounds like any other.
BREAKDOWN = 64.0


@dataclass(frozen=True)
class Eigenvalue:
    """An estimate of a symmetric matrix's largest eigenvalue λ.

    Attributes:
        value: θ = v·H·v for a unit v, the Ritz value; θ ≤ λ up to the rounding of the products.
        vector: v, shape (n,).
        residual: ρ = ‖H·v − θ·v‖; some eigenvalue lies within ρ of θ.
        gap: θ − (θ₂ + ρ₂), θ₂ the next Ritz value and ρ₂ its residual: how far the rest of the
            spectrum is from θ, as far as it has been seen. 0 where the two overlap and before the
            third step: of two Ritz values the second is the mean of all the rest.
        upper: λ ≤ upper with probability ``confidence`` over the random start; None where
            nothing can be said.
        smallest: Smallest Ritz value, ≥ λ_min; None from power iteration.
        products: Products with H.
        status: ``"converged"`` (by the rule of the algorithm) or ``"budget"`` (stopped at the limit).
        second: The next Ritz vector, shape (n,); None from power iteration and after one product.
    """

    value: float
    vector: Tensor
    residual: float
    gap: float
    upper: float | None
    smallest: float | None
    products: int
    status: Status
    confidence: float = CONFIDENCE
    second: Tensor | None = None

    @property
    def error(self) -> float:
        """min(ρ, ρ²/gap): the usual a-posteriori estimate of the distance from θ to an eigenvalue.

        ρ bounds it always; ρ²/gap (Temple and Kato; Parlett 1980) where all other eigenvalues are
        at least ``gap`` below θ, which the Ritz values suggest but do not prove. Neither says
        that the eigenvalue is the largest: ``upper`` does.
        """
        return error_estimate(self.residual, self.gap)


def lanczos(
    matvec: Matvec,
    size: int,
    *,
    rtol: float = 0.05,
    max_products: int = 40,
    seed: int = 0,
    start: Tensor | None = None,
    min_products: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Eigenvalue:
    """The algebraically largest eigenvalue of a symmetric n × n matrix.

    After m steps T = Qᵀ·H·Q is tridiagonal; its largest eigenvalue is θ. Basis vectors are made
    orthogonal in two full passes, β is measured after them, and every scalar is float64.

    rtol is the relative error of λ. The iteration ends when min(ρ, ρ²/gap) ≤ rtol·|θ| and a uniformly
    random start would hide an eigenvalue above θ + rtol·|θ| with a probability of at most 20%
    (``stopping.settled``). On random operators of eight kinds it ended with an error above rtol = 0.05 in
    2 of 100 cases, ρ ≤ rtol·|θ| alone in 4 for a fifth fewer products (tests/spectrum/test_spectrum.py).
    That is no proof; whoever needs one has ``upper``.

    Args:
        matvec: v ↦ H·v for v of shape (n,).
        size: n.
        rtol: Relative error of λ at which to stop.
        max_products: Stop after this many products in any case.
        seed: Seed of the random start vector; the caller's generator is not touched.
        start: Start vector, shape (n,), instead of a random one. Then nothing is known of what it
            hides: ρ ≤ rtol·|θ| ends the iteration, and ``upper`` is None.
        min_products: With ``start``, how many there are before rtol ends the iteration.
        device: Where the basis lives.
        dtype: Type of the basis, float32 or float64.
        progress: Called after each step with (products, max_products, θ, ρ).
        checkpoint: Where the iteration's state is kept, and gone on from; the same call gives the same
            numbers to the last bit, whether it was interrupted or not.

    Raises:
        RequestError: rtol or max_products out of range, or a zero start vector.
    """
    check_stopping(rtol, max_products)
    basis = Basis(size, device, dtype)
    steps = min(max_products, size)
    converged = False
    t = Tridiagonal()
    vector = None if checkpoint is None else checkpoint.restore(basis, t)
    if vector is None:
        vector = start_vector(size, seed, start, device, dtype)
    for _ in tridiagonalise(matvec, basis, vector, t):
        values, vectors = t.eigh()
        residuals = t.residuals(vectors)
        theta, residual = float(values[-1]), float(residuals[-1])
        gap = max(0.0, theta - float(values[-2] + residuals[-2])) if len(values) > 2 else 0.0
        if progress is not None:
            progress(len(basis), steps, theta, residual)
        coefficients = np.array(t.alphas), np.array(t.betas), size
        if t.exhausted:
            converged = True
        elif start is not None:
            converged = residual <= rtol * abs(theta) and len(basis) >= min_products
        else:
            converged = settled(theta, error_estimate(residual, gap), *coefficients, rtol)
        if converged or len(basis) == steps:
            break
        if checkpoint is not None and t.following is not None:
            checkpoint.save(basis, t, t.following)

    ritz = basis.combine(torch.from_numpy(vectors[:, -2:].copy()).to(device))
    ritz /= torch.linalg.vector_norm(ritz, dim=1, keepdim=True, dtype=torch.float64)
    upper: float | None = None
    if t.exhausted and (start is None or len(basis) == size):
        upper = theta
    elif start is None:
        upper = upper_bound(*coefficients)
    return Eigenvalue(
        value=theta,
        vector=ritz[-1],
        residual=residual,
        gap=gap,
        upper=upper,
        smallest=float(values[0]),
        products=len(basis),
        status="converged" if converged else "budget",
        second=ritz[-2] if len(ritz) > 1 else None,
    )


def tridiagonalise(
    matvec: Matvec, basis: Basis, vector: Tensor, t: Tridiagonal | None = None
) -> Iterator[Tridiagonal]:
    """Lanczos steps from a unit vector, one product each, into an empty basis, or on from one and its T.

    Yields the same, growing ``Tridiagonal`` after each step, and ends when the space is exhausted, or what
    is left cannot be told from rounding.
    """
    t = Tridiagonal() if t is None else t
    while True:
        take_step(basis, t, vector, matvec(vector))
        yield t
        if t.following is None:
            return
        vector = t.following


def take_step(basis: Basis, t: Tridiagonal, vector: Tensor, image: Tensor) -> None:
    """One Lanczos step: the basis gets q, and T what H·q says and the vector that follows."""
    basis.append(vector)
    # A copy: the matrix may hand back the very vector it was given.
    rest = image.to(device=vector.device, dtype=torch.float64, copy=True).unsqueeze(0)
    t.alphas.append(dot(vector, rest[0]))
    basis.orthogonalise(rest)
    beta = float(torch.linalg.vector_norm(rest))
    t.betas.append(beta)
    values, _ = t.eigh()
    scale = max(abs(values[0]), abs(values[-1]), beta)
    floor = BREAKDOWN * torch.finfo(vector.dtype).eps * scale
    t.exhausted = beta == 0.0 or len(basis) == len(vector)
    t.following = None if t.exhausted or beta <= floor else (rest[0] / beta).to(vector.dtype)


def dot(left: Tensor, right: Tensor) -> float:
    """Σ left·right in float64."""
    return float(left.double() @ right.double())


def start_vector(
    size: int, seed: int, start: Tensor | None, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """``start`` as a unit vector, or a uniformly random direction drawn from ``seed``."""
    if start is None:
        start = random_vectors(1, size, torch.Generator().manual_seed(seed))[0]
    if start.shape != (size,):
        raise RequestError(f"the start vector must have shape ({size},), not {tuple(start.shape)}")
    norm = float(torch.linalg.vector_norm(start, dtype=torch.float64))
    if not 0 < norm < float("inf"):
        raise RequestError("the start vector must be finite and not zero")
    return (start / norm).to(device=device, dtype=dtype)


def random_vectors(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Standard normal vectors, shape (count, n), float64 on the CPU: the same on every device."""
    return torch.randn(count, size, generator=generator, dtype=torch.float64)
