"""The Lanczos method with full reorthogonalisation, for the algebraically largest eigenvalue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from ..errors import RequestError
from .certificate import CONFIDENCE, upper_bound

Matvec = Callable[[Tensor], Tensor]
Status = Literal["converged", "budget"]
Progress = Callable[[int, int, float, float], None]

# A new basis vector shorter than this, against the matrix's own size, is rounding: the Krylov
# space is exhausted. Products in float32 and bfloat16 cannot be told from zero below their own
# precision, so the floor follows the vectors' type.
_BREAKDOWN = 64.0


@dataclass(frozen=True)
class Eigenvalue:
    """An estimate of a symmetric matrix's largest eigenvalue λ.

    Attributes:
        value: θ = v·H·v for a unit v, the Ritz value; θ ≤ λ up to the rounding of the products.
        vector: v, shape (n,).
        residual: ρ = ‖H·v − θ·v‖; some eigenvalue lies within ρ of θ.
        upper: λ ≤ upper with probability ``confidence`` over the random start; None where
            nothing can be said.
        smallest: Smallest Ritz value, ≥ λ_min; None from power iteration.
        products: Products with H.
        status: ``"converged"`` (ρ ≤ rtol·|θ|) or ``"budget"`` (stopped at the limit).
    """

    value: float
    vector: Tensor
    residual: float
    upper: float | None
    smallest: float | None
    products: int
    status: Status
    confidence: float = CONFIDENCE


def lanczos(
    matvec: Matvec,
    size: int,
    *,
    rtol: float = 0.05,
    max_products: int = 40,
    seed: int = 0,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Eigenvalue:
    """The algebraically largest eigenvalue of a symmetric n × n matrix.

    After m steps T = Qᵀ·H·Q is tridiagonal; its largest eigenvalue θ with eigenvector s has the
    residual ρ = β_m·|s_m| (Parlett 1980). Basis vectors are made orthogonal in two full passes,
    β is measured after them, and every scalar is float64.

    Args:
        matvec: v ↦ H·v for v of shape (n,).
        size: n.
        rtol: Stop when ρ ≤ rtol·|θ|.
        max_products: Stop after this many products in any case.
        seed: Seed of the random start vector; the caller's generator is not touched.
        start: Start vector, shape (n,), instead of a random one (then ``upper`` is None).
        device: Where the basis lives.
        dtype: Type of the basis, float32 or float64.
        progress: Called after each step with (products, max_products, θ, ρ).

    Raises:
        RequestError: rtol or max_products out of range, or a zero start vector.
    """
    check_stopping(rtol, max_products)
    vector = start_vector(size, seed, start, device, dtype)
    basis: list[Tensor] = []
    alphas: list[float] = []
    betas: list[float] = []
    steps = min(max_products, size)
    exhausted = converged = False
    while True:
        basis.append(vector)
        image = matvec(vector).to(device=device, dtype=dtype)
        alphas.append(dot(vector, image))
        image = _orthogonalise(image, basis)
        beta = dot(image, image) ** 0.5
        betas.append(beta)
        values, vectors = eigh_tridiagonal(np.array(alphas), np.array(betas[:-1]))
        scale = max(abs(values[0]), abs(values[-1]), beta)
        exhausted = beta <= _BREAKDOWN * torch.finfo(dtype).eps * scale or len(basis) == size
        theta, weights = float(values[-1]), vectors[:, -1]
        residual = 0.0 if exhausted else beta * abs(float(weights[-1]))
        if progress is not None:
            progress(len(basis), steps, theta, residual)
        converged = exhausted or residual <= rtol * abs(theta)
        if converged or len(basis) == steps:
            break
        vector = image / beta

    ritz = torch.zeros_like(vector)
    for weight, column in zip(weights, basis, strict=True):
        ritz += float(weight) * column
    upper: float | None = None
    if exhausted:
        upper = theta
    elif start is None:
        upper = upper_bound(np.array(alphas), np.array(betas), size)
    return Eigenvalue(
        value=theta,
        vector=ritz / dot(ritz, ritz) ** 0.5,
        residual=residual,
        upper=upper,
        smallest=float(values[0]),
        products=len(basis),
        status="converged" if converged else "budget",
    )


def dot(left: Tensor, right: Tensor) -> float:
    """Σ left·right in float64."""
    return float(left.double() @ right.double())


def start_vector(
    size: int, seed: int, start: Tensor | None, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """``start`` as a unit vector, or a uniformly random direction drawn from ``seed``."""
    if start is None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(size, generator=generator, dtype=torch.float64)
    if start.shape != (size,):
        raise RequestError(f"the start vector must have shape ({size},), not {tuple(start.shape)}")
    norm = float(torch.linalg.vector_norm(start, dtype=torch.float64))
    if not 0 < norm < float("inf"):
        raise RequestError("the start vector must be finite and not zero")
    return (start / norm).to(device=device, dtype=dtype)


def check_stopping(rtol: float, max_products: int) -> None:
    """Refuse a tolerance or a limit under which no iteration could end well."""
    if not 0 < rtol < 1:
        raise RequestError(f"rtol must lie between 0 and 1, not {rtol!r}")
    if max_products < 1:
        raise RequestError(f"max_products must be at least 1, not {max_products!r}")


def _orthogonalise(image: Tensor, basis: list[Tensor]) -> Tensor:
    # Once is not enough, twice is: the second pass removes what rounding left of the first.
    for _ in range(2):
        for column in basis:
            image = image - dot(column, image) * column
    return image
