"""One adapted module's block of the Hessian: its Lanczos, one product at a time, and what came of it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..curvature.vectors import flatten, unflatten
from ..precision import working_type
from ..records import Result, digest
from ..spectrum import Eigenvalue, upper_bound
from ..spectrum.basis import Basis
from ..spectrum.lanczos import BREAKDOWN, start_vector
from ..spectrum.stopping import error_estimate, settled
from .confirm import afresh


@dataclass(frozen=True)
class ModuleSharpness(Result):
    """λᵢ of one adapted module, and what is known of its error.

    Attributes:
        name: The module's name in the model.
        layer: The number in its name, counted from 0; None where it has none (an output head).
        kind: What it is called in its layer: ``q_proj``; ``mlp.c_proj`` where the last part alone
            would name two modules of a layer.
        parameters: nᵢ, the number of its trainable parameters.
        lambda_max: Largest Ritz value θ of its block: θ ≤ λᵢ. Null where the work failed.
        lambda_upper: λᵢ is at most this with the spectrum's ``confidence``, over the random start.
        lambda_min: Smallest Ritz value, at least the block's smallest eigenvalue.
        residual: ρ = ‖Hᵢᵢ·v − θ·v‖; some eigenvalue of the block lies within ρ of θ.
        status: ``"converged"`` (by the rule of ``spectrum.lanczos``), ``"budget"`` (stopped at the
            limit; the bounds hold) or ``"failed"``.
        products: Products with the block.
        rounding: |θ of the search − θ|: what products in bfloat16 were off by along the eigenvector, from
            one in float32; null where the search was in float32.
    """

    name: str
    layer: int | None
    kind: str
    parameters: int
    lambda_max: float | None
    lambda_upper: float | None
    lambda_min: float | None
    residual: float | None
    status: str
    products: int
    rounding: float | None = None


class Block:
    """One adapted module: its parameters, its Lanczos, and how far it has come.

    Args:
        name, layer, kind: As in ``ModuleSharpness``.
        positions: Where its parameters stand among the operator's.
        parameters: They themselves.
        share: What a product costs against one with the whole Hessian.
        rtol, max_products, seed: As in ``module_sharpness``.
    """

    def __init__(
        self,
        name: str,
        layer: int | None,
        kind: str,
        positions: Sequence[int],
        parameters: Sequence[Tensor],
        share: float,
        *,
        rtol: float,
        max_products: int,
        seed: int,
    ) -> None:
        self.name, self.layer, self.kind = name, layer, kind
        self.positions, self.parameters, self.share = positions, parameters, share
        self.size = sum(p.numel() for p in parameters)
        self.rtol, self.max_products, self.seed = rtol, max_products, module_seed(seed, name)
        self.products = 0
        self.rounding: float | None = None
        self.start()

    def start(self) -> None:
        """Begin its Lanczos, or begin it anew."""
        self.found: Eigenvalue | None = None
        self.failed = False
        first = self.parameters[0]
        vector = start_vector(self.size, self.seed, None, first.device, working_type(first))
        self.steps: Generator[Tensor, Tensor, Eigenvalue] | None = _lanczos_steps(
            vector, self.rtol, self.max_products
        )
        self.vector = next(self.steps)

    def product(self, gradient: Sequence[Tensor]) -> Tensor:
        """One microbatch's part of Hᵢᵢ·v, shape (nᵢ,), from its share of g with its graph."""
        pieces = unflatten(self.vector.to(self.parameters[0].dtype), self.parameters)
        own = [(gradient[position], piece) for position, piece in zip(self.positions, pieces, strict=True)]
        # What the loss does not depend on has a gradient of zeros that nothing hangs on.
        own = [(share, piece) for share, piece in own if share.requires_grad]
        if not own:
            return torch.zeros_like(self.vector)
        outputs, weights = zip(*own, strict=True)
        return flatten(
            torch.autograd.grad(outputs, self.parameters, weights, retain_graph=True, materialize_grads=True)
        )

    def advance(self, image: Tensor) -> None:
        """One Lanczos step with Hᵢᵢ·v: sets the next ``vector``, or what was ``found``."""
        assert self.steps is not None
        self.products += 1
        self.failed = not bool(torch.isfinite(image).all())
        try:
            if not self.failed:
                self.vector = self.steps.send(image)
        except StopIteration as end:
            self.found = end.value
            self.vector = end.value.vector
        if self.done:
            self.steps = None  # and the basis with it

    def verify(self, image: Tensor) -> bool:
        """Take θ and ρ afresh from Hᵢᵢ·v of the eigenvector; whether they say what the search said.

        The product is of a higher precision than those of the search: ``rounding`` is what that changed.
        """
        assert self.found is not None
        self.products += 1
        rough = self.found
        if self.failed or not bool(torch.isfinite(image).all()):
            self.failed, self.found = True, None
            return True
        self.found = afresh(rough, image, self.rtol)
        self.rounding = abs(self.found.value - rough.value)
        return self.found.status == rough.status

    @property
    def done(self) -> bool:
        """It takes no part in further steps."""
        return self.failed or self.found is not None

    def result(self) -> ModuleSharpness:
        """What is known now; a module that was still under way has failed."""
        found = self.found
        return ModuleSharpness(
            name=self.name,
            layer=self.layer,
            kind=self.kind,
            parameters=self.size,
            lambda_max=None if found is None else found.value,
            lambda_upper=None if found is None else found.upper,
            lambda_min=None if found is None else found.smallest,
            residual=None if found is None else found.residual,
            status="failed" if found is None else found.status,
            products=self.products,
            rounding=self.rounding if found is not None else None,
        )


def _lanczos_steps(vector: Tensor, rtol: float, max_products: int) -> Generator[Tensor, Tensor, Eigenvalue]:
    """``spectrum.lanczos`` turned inside out: yields v, is sent H·v, returns the eigenvalue.

    All of Qᵀ·H·Q is kept, not its three diagonals alone: reorthogonalisation measures it anyway, and
    with it ρ holds for products that are not quite symmetric (bfloat16) too, at no further product.
    """
    size, floor = len(vector), BREAKDOWN * torch.finfo(vector.dtype).eps
    basis = Basis(size, vector.device, vector.dtype)
    projected = np.zeros((1, 0))  # H·Q = [Q, q_m]·projected
    while True:
        basis.append(vector)
        image = (yield vector).to(torch.float64, copy=True).unsqueeze(0)
        inner = basis.orthogonalise(image)[:, 0].cpu().numpy()
        beta = float(torch.linalg.vector_norm(image))
        m = len(basis)
        projected = np.pad(projected, ((0, 1), (0, 1)))
        projected[:, -1] = [*inner, beta]
        values, vectors = np.linalg.eigh((projected[:m] + projected[:m].T) / 2)
        residuals = np.linalg.norm(projected @ vectors - np.pad(values * vectors, ((0, 1), (0, 0))), axis=0)
        theta, residual = float(values[-1]), float(residuals[-1])
        gap = max(0.0, theta - float(values[-2] + residuals[-2])) if m > 2 else 0.0  # as in lanczos
        alphas, betas = np.diag(projected).copy(), np.diag(projected, -1).copy()
        exhausted = m == size or beta == 0.0
        # It may be rounding alone, or not: no next step can be built on it, but ρ and the bounds have it.
        last = m == max_products or beta <= floor * max(abs(theta), abs(float(values[0])), beta)
        converged = exhausted or settled(theta, error_estimate(residual, gap), alphas, betas, size, rtol)
        if converged or last:
            return Eigenvalue(
                value=theta,
                vector=basis.combine(torch.from_numpy(vectors[:, -1:].copy()).to(vector.device))[0],
                residual=residual,
                gap=gap,
                upper=theta if exhausted else max(theta, upper_bound(alphas, betas, size)),
                smallest=float(values[0]),
                products=m,
                status="converged" if converged else "budget",
            )
        vector = (image[0] / beta).to(vector.dtype)


def module_seed(seed: int, name: str) -> int:
    """The seed of a module's start vector: the module's own, whatever else is measured."""
    return int(digest([seed, name]), 16) % 2**63
