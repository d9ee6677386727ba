"""What is known of λ without an eigensolver on H while B = 0.

With W_eff = W + s·B·A and B = 0 the Hessian has no A–A part; its A–B part C couples only the A and B
of one module, through s·⟨G, δB·δA⟩ with G = ∂L/∂W_eff, and its B–B part H_BB is ordinary curvature.
Hence, with σ = s·maxᵢ σ₁(Gᵢ) and μ = λ_max(H_BB) ≥ 0,

    λ  ≤  ½·(μ + √(μ² + 4σ²)),

and λ ≥ θ(v) = ½·(q + √(q² + 4c²)) for any unit v over B, q = v·H_BB·v and c = ‖C·v‖: the larger
eigenvalue of H on the plane of v and C·v. C comes with the gradient, H_BB costs a product each time.
So λ is sought over B alone (``zero_b``), and the same products give an upper end, sharper than the one
above (``ceiling``). Plain LoRA's λ is mostly σ, a spectral norm of a gradient with −λ at the other end
of the spectrum. With a larger s, H_BB ∝ s² overtakes C ∝ s, and both ends take more products to meet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn

from ..batches import Batch
from ..errors import HessianLRError, RequestError
from ..records import Result
from ..setting import check_counts
from ..spectrum.certificate import CONFIDENCE
from ..spectrum.lanczos import Progress, dot
from .caveats import model_notes
from .ceiling import CouplesBoth, ceilings
from .coupling import Coupling, TopCoupling
from .operator import HessianOperator
from .weight_gradients import adapted_layers
from .zero_b import ZeroBSearch

MAX_PRODUCTS = 16
# One with C's top direction, and one for an upper end.
_FEWEST = 2
# What a fast prediction takes at most: enough where λ is mostly coupling; elsewhere Lanczos costs no more.
FAST_PRODUCTS = 8
# Relative error of λ aimed at.
TOLERANCE = 0.1
# The upper end is sharpest for a λ at or somewhat below the guess.
_AHEAD = 1.1
# Of the two runs that the upper end may take: that either is wrong has the probability 1 − CONFIDENCE.
_CONFIDENCES = (0.96, 0.99)
# The estimate is good enough for a better guess when ρ²/θ² is at most this.
_SETTLED = 0.1
# The A side's share of the eigenvector: a half without curvature over B, nothing without coupling.
_SADDLE = 0.4


@dataclass(frozen=True)
class ClosedForm(Result):
    """λ at B = 0 as its structure gives it.

    Attributes:
        sigma: σ = maxᵢ sᵢ·σ₁(Gᵢ).
        module: The module where σ is attained.
        gradient_norm: maxᵢ σ₁(Gᵢ).
        quotient: q = y·H_BB·y of the direction y over B where σ is attained: how much curvature
            stands behind σ.
        lower: θ, a Rayleigh quotient of H: λ is at least this, up to the rounding of the products.
        estimate: The larger eigenvalue of [[θ, ρ], [ρ, 0]], which λ reaches if H does not bend down
            along the residual; ``upper`` if that is less.
        residual: ρ = ‖H·x − θ·x‖; some eigenvalue lies within ρ of θ.
        upper: λ is at most this with probability ``confidence`` over the random start, for exact
            products.
        confidence: See ``upper``.
        status: ``"converged"``: ``lower`` and ``upper`` are both within 10% of the estimate.
            ``"budget"``: they were not at the limit of products, and only they can be relied on.
        products: Products with H_BB.
        gradient_equivalents: All work, in gradients of the loss over the sample.
        seconds: Wall time.
        loss: L, in nats a token.
        tokens: Tokens of the sample, padding included.
        notes: What a reader should know.
    """

    sigma: float
    module: str
    gradient_norm: float
    quotient: float
    lower: float
    estimate: float
    residual: float
    upper: float
    confidence: float
    status: str
    products: int
    gradient_equivalents: float
    seconds: float
    loss: float
    tokens: int
    notes: tuple[str, ...] = ()


def closed_form(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    dtype: torch.dtype = torch.float32,
    max_products: int = MAX_PRODUCTS,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ClosedForm:
    """λ of a LoRA adapter whose B is zero between two ends, for a gradient and a few products.

    The first product is with C's top direction: it tells how much curvature stands behind σ. All others
    belong to the upper end's Lanczos run, whose random start cannot overlook curvature elsewhere but by
    chance; the lower end is the best Rayleigh quotient over all of them. It is converged only if the
    two ends lie within 10% of the estimate. Where λ turns out to be above what the first product let
    expect, and the run's own Ritz value shows that its upper end will not come down to λ, a second run
    starts from the better estimate.

    A search along residuals from C's top needs fewer products, but nothing tells when it has missed the
    largest curvature: on 72 tiny models such a rule called estimates converged that were up to 64% too
    low. That of this function was chosen on other models than those that experiments/lambda_check tells of.

    Beside the operator's graphs this holds every adapted module's inputs and output gradients.

    Args:
        model: A PEFT model of plain LoRA or rsLoRA at initialization.
        batches: The curvature sample, as for ``HessianOperator``.
        dtype: Precision of the products.
        max_products: Stop after this many products in any case, at least two.
        memory_budget: As for ``HessianOperator``.
        seed: Seed of the random start; the caller's generator is not touched.
        progress: Called after each product with (products, limit, θ, ρ).

    Raises:
        RequestError: ``max_products`` is no whole number from 2 on, or ``seed`` from 0 on; an adapter of
            another kind, B is not zero, something else is trained too, or nothing is labelled.
        HessianLRError: no module's weight has a gradient.
        NonFiniteError: the loss or a product is not finite.
    """
    check_counts(seed=seed)
    if not isinstance(max_products, Integral) or max_products < _FEWEST:
        raise RequestError(f"max_products must be a whole number of at least {_FEWEST}, not {max_products!r}")
    began = time.perf_counter()
    layers = _zero_b_layers(model)
    with _only_b(layers):
        operator = HessianOperator(model, batches, dtype=dtype, memory_budget=memory_budget)
        # Vectors over B follow the operator's order of parameters.
        by_weight = {id(_factors(layer)[1]): name for name, layer in layers.items()}
        coupling = Coupling({by_weight[id(p)]: layers[by_weight[id(p)]] for p in operator.parameters})
        with coupling.recording():
            operator.gradient()
        top = coupling.top()
        if not top.sigma > 0:
            raise HessianLRError(
                "the loss has no gradient over any adapted weight: nothing to learn from these batches"
            )
        found = bounded(
            operator.matvec, coupling, top, max_products=max_products, seed=seed, progress=progress
        )
    return ClosedForm(
        sigma=top.sigma,
        module=top.module,
        gradient_norm=top.gradient_norm,
        quotient=found.quotient,
        lower=found.search.theta,
        estimate=found.estimate,
        residual=found.search.rho,
        upper=found.upper,
        confidence=CONFIDENCE,
        status="converged" if found.converged else "budget",
        products=found.search.products,
        gradient_equivalents=round(operator.cost.gradient_equivalents, 3),
        seconds=round(time.perf_counter() - began, 3),
        loss=operator.loss,
        tokens=operator.tokens,
        notes=_notes(operator, found),
    )


@dataclass(frozen=True)
class Bounded:
    """A search over B and what came of it; the fields are those of ``ClosedForm``."""

    search: ZeroBSearch
    quotient: float
    estimate: float
    upper: float
    converged: bool


def bounded(
    matvec: Callable[[Tensor], Tensor],
    coupling: CouplesBoth,
    top: TopCoupling,
    *,
    max_products: int,
    seed: int,
    progress: Progress | None = None,
) -> Bounded:
    """λ of [[0, C], [Cᵀ, M]] from products with M: the work of ``closed_form``, without a model.

    Args:
        matvec: v ↦ M·v over B.
        coupling: C.
        top: C's largest singular value and a vector to it.
        max_products, seed, progress: As for ``closed_form``.
    """
    search = ZeroBSearch(matvec, coupling)
    quotient = dot(top.direction, search.multiply(top.direction))
    generator = torch.Generator().manual_seed(seed)
    upper = math.inf
    for last, confidence in enumerate(_CONFIDENCES):
        guess = _AHEAD * max(search.estimate, top.sigma)
        run = (search.multiply, coupling, top.sigma, guess, top.direction, confidence, generator)
        for ceiling in ceilings(*run):
            upper = min(upper, ceiling.upper)
            estimate = min(search.estimate, upper)
            near = (1 + TOLERANCE) * estimate
            converged = upper <= near and estimate <= (1 + TOLERANCE) * search.theta
            if progress is not None:
                progress(search.products, max_products, search.theta, search.rho)
            if converged or search.products >= max_products:
                return Bounded(search, quotient, estimate, upper, converged)
            settled = search.rho**2 <= _SETTLED * search.theta**2
            if not last and settled and search.theta > guess and ceiling.least > near:
                break
    return Bounded(search, quotient, estimate, upper, converged)


def _zero_b_layers(model: nn.Module) -> dict[str, Any]:
    """The model's LoRA layers if the closed form holds for them."""
    # What adapts a parameter, as experts' and routers' adapters do, may have no weight matrix below it.
    on_parameters = {name: layer for name, layer in model.named_modules() if isinstance(layer, ParamWrapper)}
    layers = _active(on_parameters) or _active(adapted_layers(model))
    if not layers:
        raise RequestError("the active adapter is on no linear module: make another one active")
    instead = "measure λ by Lanczos instead (`hessian-lr spectrum`, or predict without --fast)"
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    for name, layer in layers.items():
        if not isinstance(layer, LoraLayer) or isinstance(layer, ParamWrapper) or not layer.lora_A:
            kind = type(layer).__name__
            raise RequestError(
                f"the closed form is that of one B·A for each linear layer, and {name} is adapted "
                f"by a {kind} layer of {type(layer).__module__}: {instead}"
            )
        if layer.lora_magnitude_vector:
            raise RequestError(
                f"the closed form does not hold for DoRA: the magnitude of {name} is trained beside A and B, "
                f"and the loss feels it, A and B together: {instead}"
            )
        if layer.lora_variant or any(layer.lora_bias.values()) or len(layer.active_adapters) != 1:
            raise RequestError(
                f"the closed form needs plain LoRA, a single adapter, no bias; {name} has more: {instead}"
            )
        a, b = _factors(layer)
        if bool(b.any()):
            raise RequestError(
                f"the closed form holds only while B = 0, and {name} has a B that is trained or was "
                f"started elsewhere: {instead}"
            )
        if {id(a), id(b)} - trained:
            raise RequestError(f"the closed form needs A and B of {name} to be trainable")
        trained -= {id(a), id(b)}
    if trained:
        names = [name for name, p in model.named_parameters() if id(p) in trained]
        raise RequestError(
            f"the closed form is about A and B only, but {names[0]} is trainable as well "
            f"({len(names)} such parameters): {instead}"
        )
    return layers


def _active(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Without those on which other adapters than the active one lie, where nothing is added."""
    return {
        name: layer
        for name, layer in layers.items()
        if not getattr(layer, "lora_A", None) or any(name in layer.lora_A for name in layer.active_adapters)
    }


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    adapter = layer.active_adapters[0]
    return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight


def _notes(operator: HessianOperator, found: Bounded) -> tuple[str, ...]:
    notes = []
    if (why := operator.plan.note()) is not None:
        notes.append(why)
    notes += model_notes(operator.model)
    if found.search.share_of_a > _SADDLE:
        notes.append("B = 0 is a saddle: λ is a gradient's spectral norm rather than a curvature")
    if not found.converged:
        notes.append(
            f"closed form stopped after {found.search.products} products without its ends meeting: "
            f"λ lies between {found.search.theta:.4g} and {found.upper:.4g}, the estimate is a guess"
        )
    return tuple(notes)


@contextmanager
def _only_b(layers: dict[str, Any]) -> Iterator[None]:
    weights = [_factors(layer)[0] for layer in layers.values()]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
