"""Following the sharpness along a training run, for a few products an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..curvature.adam import PreconditionedOperator, adam_preconditioner
from ..curvature.operator import HessianOperator
from ..errors import RequestError
from ..records import Record
from ..setting import check_counts
from ..spectrum import Eigenvalue, lanczos
from ..spectrum.lanczos import random_vectors
from .how import vectors_of

# Length of the random component that is added to the last eigenvectors, against one's own:
# a newly risen eigenvalue shows no sooner with three times as much, and the error doubles.
_FRESH = 0.1

# That of the Ritz vector next to it, which may overtake it (what it brings and costs: experiments/tracking).
_SECOND = 0.5

# An update goes on while ρ is more than this share of |θ|, up to so many times its products: early in a run
# the vector turns faster than three products follow.
_RTOL = 0.03
_MOST = 3


@dataclass(frozen=True)
class TrackedSharpness(Record):
    """λ at one moment of a training run.

    Attributes:
        step: The run's step, as given.
        lambda_max: θ, a Ritz value of the Hessian then: θ ≤ λ.
        residual: ρ = ‖H·v − θ·v‖; some eigenvalue lies within ρ of θ.
        matvecs: Hessian-vector products of this update.
        gradient_equivalents: Its work, in gradients of the loss over the tracker's batches.
        loss: L on the tracker's batches, in nats a token.
        lambda_preconditioned: θ of P^-½·H·P^-½, P as Adam has it now; None where no optimizer was given.
        residual_preconditioned: Its ρ.
    """

    step: int
    lambda_max: float
    residual: float
    matvecs: int
    gradient_equivalents: float
    loss: float
    lambda_preconditioned: float | None = None
    residual_preconditioned: float | None = None


class SharpnessTracker:
    """λ of a model's loss on fixed batches, again and again while the model is trained.

    The top eigenvector turns slowly under training, so each update is a short Lanczos run from the last
    one, plus the Ritz vector next to it, which may be about to overtake it, plus a small random
    component; the first starts from a random vector and runs to ``lanczos``'s own tolerance. An update
    takes ``products`` products at least, as a small residual before that only says that the old
    eigenvector is still one, not that it is still the largest's; and up to three times as many while
    the residual is more than 3% of the value. Values are lower bounds; a residual that is larger at the
    end says that the vector has not kept up, a small one not that no other eigenvalue is larger. An
    eigenvalue that was not among the first two and overtakes them takes some updates until it shows,
    the more the closer they are and the larger the model: with 3 products, 352 parameters and
    eigenvalues of 1.54 and 1.08 it was 9 to 16, with 2 products 30 and more. Setting ``vector`` to None
    makes the next update start anew.

    Args:
        batches: The sample on which λ is measured.
        dtype: Precision of the products: float32, bfloat16 (autocast), or float64.
        products: Hessian-vector products of each update but the first, and up to three times as many where
            the residual asks for them; twice as many for λ_P.
        memory_budget: Bytes that kept graphs may fill (0: rebuild all; None: decide by what is free).
        seed: Seed of the random components; no other random state is touched.

    Attributes:
        vector: The last eigenvector, shape (n,); None before the first update.
        direction: P^-½ times the preconditioned matrix's last eigenvector, shape (n,): a direction of the
            parameters, which outlives P; None before the first update with an optimizer.

    Raises:
        RequestError: fewer than two products (one alone cannot correct the direction), or no whole number.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        *,
        dtype: torch.dtype = torch.float32,
        products: int = 3,
        memory_budget: int | None = None,
        seed: int = 0,
    ) -> None:
        check_counts(products=products, seed=seed)
        if products < 2:
            raise RequestError(f"products must be at least 2 to follow a turning vector, not {products!r}")
        self.batches = batches
        self.dtype = dtype
        self.products = products
        self.memory_budget = memory_budget
        self.vector: Tensor | None = None
        self.direction: Tensor | None = None
        self._second: Tensor | None = None
        self._second_direction: Tensor | None = None
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)

    def update(
        self, model: nn.Module, step: int, optimizer: torch.optim.Adam | None = None
    ) -> TrackedSharpness:
        """Measure λ at the model's present weights, and with ``optimizer`` λ_P at its present state too.

        The model, its modes, its gradients, the random state and the optimizer are left as they were
        found. Both measurements share the gradient's graphs. Weight decay that Adam (not AdamW) adds to the
        gradient is in neither.

        Raises:
            RequestError: the model has another number of trainable parameters than before, no token is
                labelled, or the optimizer is not Adam or AdamW, has not stepped all of the parameters yet, or
                has several groups that all are at a learning rate of 0.
            NonFiniteError: the loss or a product is NaN or infinite, as after a diverged step.
        """
        operator = HessianOperator(model, self.batches, dtype=self.dtype, memory_budget=self.memory_budget)
        found = self._follow(operator, operator.matvec, self.vector, self._second)
        self.vector, self._second = found.vector, found.second
        scaled = None
        if optimizer is not None:
            if any("exp_avg_sq" not in optimizer.state.get(p, {}) for p in operator.parameters):
                raise RequestError(
                    "the optimizer has no second moments of some parameters: it must be the Adam or AdamW "
                    "that trains this model, after its first step"
                )
            diagonal = adam_preconditioner(optimizer, operator.parameters)
            vector, second = (_in_geometry(one, diagonal) for one in (self.direction, self._second_direction))
            # P moves as well, and faster early on: with as few products as λ, 44% were missed.
            adam = PreconditionedOperator(operator, diagonal)
            scaled = self._follow(operator, adam.matvec, vector, second, times=2)
            self.direction, self._second_direction = (
                None if one is None else one * diagonal.rsqrt() for one in (scaled.vector, scaled.second)
            )
        return TrackedSharpness(
            step=step,
            lambda_max=found.value,
            residual=found.residual,
            matvecs=found.products + (scaled.products if scaled else 0),
            gradient_equivalents=round(operator.cost.gradient_equivalents, 3),
            loss=operator.loss,
            lambda_preconditioned=scaled.value if scaled else None,
            residual_preconditioned=scaled.residual if scaled else None,
        )

    def _follow(
        self,
        operator: HessianOperator,
        matvec: Callable[[Tensor], Tensor],
        vector: Tensor | None,
        second: Tensor | None,
        times: int = 1,
    ) -> Eigenvalue:
        """The largest eigenvalue, from unit vectors of it and the next lately, or from nothing."""
        if vector is None:
            return lanczos(matvec, operator.size, seed=self._seed, **vectors_of(operator))
        if len(vector) != operator.size:
            raise RequestError(
                f"the model has {operator.size} trainable parameters, the tracker followed "
                f"{len(vector)}: use a new tracker for another model"
            )
        fresh = random_vectors(1, operator.size, self._generator)[0].to(operator.device)
        start = vector.to(operator.device) + _FRESH / operator.size**0.5 * fresh
        if second is not None:
            start += _SECOND * second.to(operator.device)
        return lanczos(
            matvec,
            operator.size,
            rtol=_RTOL,
            min_products=times * self.products,
            max_products=_MOST * times * self.products,
            start=start,
            **vectors_of(operator),
        )


def _in_geometry(direction: Tensor | None, diagonal: Tensor) -> Tensor | None:
    """A direction of the parameters as a unit vector of the preconditioned matrix's space."""
    if direction is None:
        return None
    vector = torch.where(diagonal.isinf(), 0.0, direction.to(diagonal.device) * diagonal.sqrt())
    # Nothing is left of it where it lay in what is held now, as of groups that take turns.
    return vector / norm if (norm := vector.norm()) > 0 else None
