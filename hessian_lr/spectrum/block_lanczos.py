"""Block Lanczos: the several largest eigenvalues, each as often as it occurs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import RequestError
from .basis import Basis
from .lanczos import BREAKDOWN, Progress, Status, random_vectors
from .stopping import check_stopping

Matmat = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Eigenvalues:
    """Estimates of a symmetric matrix's largest eigenvalues.

    Attributes:
        values: Ritz values θ_i in descending order; θ_i ≤ λ_i, the i-th largest eigenvalue counted
            with its multiplicity, up to the rounding of the products.
        vectors: Orthonormal Ritz vectors as columns, shape (n, count).
        residuals: ρ_i = ‖H·v_i − θ_i·v_i‖; some eigenvalue lies within ρ_i of θ_i.
        products: Products with single vectors: a block of b counts b.
        status: ``"converged"`` (every ρ_i ≤ rtol·max|θ|) or ``"budget"`` (stopped at the limit).
    """

    values: tuple[float, ...]
    vectors: Tensor
    residuals: tuple[float, ...]
    products: int
    status: Status


def block_lanczos(
    matmat: Matmat,
    size: int,
    *,
    count: int = 1,
    block: int = 4,
    rtol: float = 0.05,
    max_products: int = 160,
    seed: int = 0,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Eigenvalues:
    """The ``count`` algebraically largest eigenvalues of a symmetric n × n matrix, with multiplicity.

    A Krylov space grown from one vector holds one direction of each eigenspace, so single-vector
    Lanczos sees an r-fold eigenvalue once; grown from b random vectors it holds min(r, b) of them
    (Cullum and Donath 1974, Golub and Underwood 1977). Every new vector is made orthogonal to all
    others, in two passes. Directions that the space already holds are dropped, so that a block may
    shrink; when nothing is left of it and fewer than ``count`` vectors are there, fresh random
    ones go on.

    Args:
        matmat: V ↦ H·V for V of shape (n, b), any b up to ``block``.
        size: n.
        count: How many eigenvalues.
        block: b. At most b copies of one eigenvalue are found reliably.
        rtol: Stop when each of the ``count`` residuals is at most rtol times the largest |θ|.
        max_products: Stop before exceeding this many products with single vectors.
        seed: Seed of the random start block; the caller's generator is not touched.
        start: Orthonormal vectors to start from instead, shape (n, block), such as those of a less exact
            matrix. The first block's values are the best within them; of what they hide nothing is known.
        device: Where the basis lives.
        dtype: Type of the basis, float32 or float64.
        progress: Called after each block with (products, max_products, θ_count, ρ_count).

    Raises:
        RequestError: rtol out of range, count or block not between 1 and n, a start of another shape, or too
            few products to reach ``count`` vectors.
    """
    check_stopping(rtol, max_products)
    for name, value in (("count", count), ("block", block)):
        if not 1 <= value <= size:
            raise RequestError(f"{name} must lie between 1 and the matrix's order {size}, not {value!r}")
    if max_products < count + block - 1:
        raise RequestError(
            f"max_products must be at least count + block - 1 = {count + block - 1}, not {max_products!r}"
        )
    if start is not None and start.shape != (size, block):
        raise RequestError(f"the start must have shape ({size}, {block}), not {tuple(start.shape)}")
    generator = torch.Generator().manual_seed(seed)
    basis = Basis(size, device, dtype)
    projected = np.zeros((0, 0))
    lost = 0.0  # the length of all that was left out of the basis as too short
    first = random_vectors(block, size, generator) if start is None else start.T.double()
    _extend(basis, first.to(device), 0.0)
    done = 0
    while True:
        newest = basis.rows[done:]
        # A copy: the matrix may hand back the very tensor it was given.
        images = newest.new_empty(newest.shape, dtype=torch.float64)
        images.copy_(matmat(newest.T.contiguous()).T)
        width, done = len(newest), len(basis)
        columns = basis.orthogonalise(images).cpu().numpy()
        projected = np.pad(projected, ((0, width), (0, width)))
        projected[:, -width:] = columns
        projected[-width:, :] = columns.T
        # Of the newest block with itself both halves were measured: the mean is the symmetric part.
        projected[-width:, -width:] = 0.5 * (columns[-width:] + columns[-width:].T)
        values, vectors = np.linalg.eigh(projected)
        scale = max(float(np.abs(values).max()), float(torch.linalg.vector_norm(images, dim=1).max()))
        found = min(count, done)  # fewer than ``count`` only before the space has grown to it
        # H·Q·s − θ·Q·s = (what H·Q_newest has outside the basis)·s_newest, and what older blocks lost.
        newest_part = torch.from_numpy(vectors[-width:, -found:].copy()).to(images.device)
        residuals = torch.linalg.vector_norm(newest_part.T @ images, dim=1).cpu().numpy() + lost
        lost = math.hypot(lost, _extend(basis, images, BREAKDOWN * torch.finfo(dtype).eps * scale))
        exhausted = len(basis) == done
        if progress is not None:
            progress(done, max_products, float(values[-found]), float(residuals[0]))
        allowed = rtol * float(np.abs(values[-found:]).max())
        converged = done >= count and bool((residuals <= allowed).all())
        if exhausted and not converged and done < size:
            _extend(basis, random_vectors(min(block, size - done), size, generator).to(device), 0.0)
        wider = len(basis) - done
        if converged or not wider or done + wider > max_products:
            break

    basis.shorten(done)
    chosen = torch.from_numpy(vectors[:, ::-1][:, :found].copy()).to(device)
    return Eigenvalues(
        values=tuple(float(x) for x in values[::-1][:found]),
        vectors=basis.combine(chosen).T,
        residuals=tuple(float(x) for x in residuals[::-1]),
        products=done,
        status="converged" if converged else "budget",
    )


def _extend(basis: Basis, vectors: Tensor, floor: float) -> float:
    """Add to the basis what each of some float64 vectors has outside it, if longer than ``floor``.

    Returns:
        The length of what was not: the root of the sum of squares.
    """
    lost = 0.0
    for vector in vectors:
        if len(basis) == vector.numel():
            break
        row = vector.unsqueeze(0).clone()
        # What is left of a vector may be so short that rounding turns it back into the basis: it is
        # scaled to length 1 and made orthogonal once more before it counts as a direction.
        basis.orthogonalise(row)
        length = float(torch.linalg.vector_norm(row))
        if length <= floor:
            lost = math.hypot(lost, length)
            continue
        row /= length
        basis.orthogonalise(row)
        basis.append(row[0] / torch.linalg.vector_norm(row))
    return lost
