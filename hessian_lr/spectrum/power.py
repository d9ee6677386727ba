"""Power iteration, with the shift that makes it find the algebraically largest eigenvalue."""

from __future__ import annotations

import torch
from torch import Tensor

from .lanczos import Eigenvalue, Matvec, Progress, dot, start_vector
from .stopping import check_stopping


def power_iteration(
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
    """The algebraically largest eigenvalue of a symmetric n × n matrix, in two vectors of memory.

    Iterates v ← (H + c·I)·v / ‖·‖ with c the largest ‖H·v‖ seen so far. Unshifted iteration finds
    the eigenvalue largest in magnitude and stands still between +λ and −λ, which is what plain
    LoRA has at initialization; the shift sends −λ towards 0 and +λ to 2λ. It still needs many
    more products than Lanczos, and where it does not get there its status is ``"budget"``. It ends
    when ρ = ‖H·v − θ·v‖ ≤ rtol·|θ|; of the rest of the spectrum it knows nothing, so ``gap`` is 0
    and ``upper`` None.

    Arguments, result and errors are otherwise those of ``lanczos``.
    """
    check_stopping(rtol, max_products)
    vector = start_vector(size, seed, start, device, dtype)
    shift = 0.0
    for products in range(1, max_products + 1):
        image = matvec(vector).to(device=device, dtype=dtype)
        theta = dot(vector, image)
        difference = image - theta * vector
        residual = dot(difference, difference) ** 0.5
        if progress is not None:
            progress(products, max_products, theta, residual)
        shift = max(shift, dot(image, image) ** 0.5)
        # An eigenvector of the lower end, −λ, has a small residual too; it is not the answer, and
        # the shifted iteration moves away from it.
        upper_half = theta > -0.5 * shift or shift == 0.0
        converged = upper_half and residual <= rtol * abs(theta)
        shifted = image + shift * vector
        norm = dot(shifted, shifted) ** 0.5
        if converged or norm == 0.0 or products == max_products:
            break
        vector = shifted / norm
    return Eigenvalue(
        value=theta,
        vector=vector,
        residual=residual,
        gap=0.0,
        upper=None,
        smallest=None,
        products=products,
        status="converged" if converged else "budget",
    )
