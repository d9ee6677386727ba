"""What is known of λ without an eigensolver on H while B = 0.

With W_eff = W + s·B·A and B = 0 the Hessian has no A–A part; its A–B part C couples only the A and B
of one module, through s·⟨G, δB·δA⟩ with G = ∂L/∂W_eff, and its B–B part H_BB is ordinary curvature.
Hence, with σ = s·maxᵢ σ₁(Gᵢ) and μ = λ_max(H_BB) ≥ 0,

    λ  ≤  ½·(μ + √(μ² + 4σ²)),

and λ ≥ θ(v) = ½·(q + √(q² + 4c²)) for any unit v over B, q = v·H_BB·v and c = ‖C·v‖: the larger
eigenvalue of H on the plane of v and C·v. C comes with the gradient, H_BB costs a product each time,
so λ is sought over B alone (``zero_b``). Plain LoRA's λ is mostly σ, a spectral norm of a gradient with
−λ at the other end of the spectrum, and the first product nearly settles it. With a larger s, H_BB ∝ s²
overtakes C ∝ s, and it takes a few products more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..errors import HessianLRError, RequestError
from ..records import Record
from ..spectrum import lanczos
from ..spectrum.lanczos import Progress
from .coupling import Coupling
from .loss import Batch
from .operator import HessianOperator
from .weight_gradients import adapted_layers
from .zero_b import ZeroBSearch, norm, plane

MAX_PRODUCTS = 8
# A residual shorter than this, against θ and the type's precision, is rounding.
_BREAKDOWN = 64.0
# A second vector that adds little may only have begun to leave C's direction: on a tiny Qwen2 it added 8%
# to an estimate that was 20% low. So it must add less, by this factor, to end the search.
_LULL = 0.25
# Of the Lanczos run on H_BB.
_MU_PRODUCTS = 60
# The A side's share of the eigenvector: a half without curvature over B, nothing without coupling.
_SADDLE = 0.4


@dataclass(frozen=True)
class ClosedForm(Record):
    """λ at B = 0 as its structure gives it.

    Attributes:
        sigma: σ = maxᵢ sᵢ·σ₁(Gᵢ).
        module: The module where σ is attained.
        gradient_norm: maxᵢ σ₁(Gᵢ).
        quotient: q = y·H_BB·y of the direction y over B where σ is attained: how much curvature
            stands behind σ.
        lower: θ, a Rayleigh quotient of H: λ is at least this, up to the rounding of the products.
        estimate: The larger eigenvalue of [[θ, ρ], [ρ, 0]], which λ reaches if H does not bend down
            along the residual.
        residual: ρ = ‖H·x − θ·x‖; some eigenvalue lies within ρ of θ.
        upper: λ is at most this unless μ exceeds the 95% bound of its Lanczos run; None unless refined.
        mu: Ritz value of μ = λ_max(H_BB); None unless refined.
        status: ``"converged"`` or ``"budget"`` (stopped at the limit of products).
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
    upper: float | None
    mu: float | None
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
    refine: bool = False,
    rtol: float = 0.1,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> ClosedForm:
    """λ of a LoRA adapter whose B is zero, for a gradient and a few products; with bounds if asked.

    Ends when a product has raised the estimate by at most rtol, the second product by at most rtol/4,
    and ρ² ≤ ½·rtol·θ² (ρ²/δ is the error of an eigenvalue that lies δ above the rest; δ ~ θ is
    assumed). Not after the first, along C: it cannot tell whether curvature elsewhere exceeds it. This
    measures progress and proves nothing: of 72 tiny models that the rule had not seen, 55 estimates were
    within 10% of λ, the median 0.8% off, the worst 64% too low, though called converged. ``lower`` held in
    all; it and, refined, ``upper`` are what can be relied on.

    Beside the operator's graphs this holds every adapted module's inputs and output gradients.

    Args:
        model: A PEFT model of plain LoRA or rsLoRA at initialization.
        batches: The curvature sample, as for ``HessianOperator``.
        dtype: Precision of the products.
        refine: Measure μ as well, by Lanczos on H_BB to rtol, for ``mu`` and ``upper``.
        rtol: Relative error aimed at.
        memory_budget: As for ``HessianOperator``.
        progress: Called after each product with (products, limit, θ, ρ).

    Raises:
        RequestError: an adapter of another kind, B is not zero, something else is trained too, or
            nothing is labelled.
        HessianLRError: no module's weight has a gradient.
        NonFiniteError: the loss or a product is not finite.
    """
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
        search = ZeroBSearch(operator, coupling)
        quotient = search.extend(top.direction)
        converged = False
        while True:
            if progress is not None:
                progress(search.products, MAX_PRODUCTS, search.theta, search.rho)
            exhausted = search.rho <= _BREAKDOWN * torch.finfo(top.direction.dtype).eps * search.theta
            if converged or exhausted or search.products == MAX_PRODUCTS:
                break
            before = search.estimate
            search.extend(search.residual)
            grown = search.estimate - before
            allowed = rtol * before * (1.0 if search.products > 2 else _LULL)
            converged = grown <= allowed and search.rho**2 <= 0.5 * rtol * search.theta**2
        products, lower, mu, upper = search.products, search.theta, None, None
        if refine:
            found = lanczos(
                operator.matvec,
                operator.size,
                rtol=rtol,
                max_products=_MU_PRODUCTS,
                device=operator.device,
                dtype=top.direction.dtype,
            )
            mu, products = found.value, products + found.products
            lower = max(lower, plane(found.value, norm(coupling.to_a(found.vector))))
            assert found.upper is not None, "a random start has a bound"
            high = max(found.upper, 0.0)
            upper = plane(high, top.sigma)
    return ClosedForm(
        sigma=top.sigma,
        module=top.module,
        gradient_norm=top.gradient_norm,
        quotient=quotient,
        lower=lower,
        estimate=max(lower, search.estimate),
        residual=search.rho,
        upper=upper,
        mu=mu,
        status="converged" if converged or exhausted else "budget",
        products=products,
        gradient_equivalents=round(operator.cost.gradient_equivalents, 3),
        seconds=round(time.perf_counter() - began, 3),
        loss=operator.loss,
        tokens=operator.tokens,
        notes=_notes(operator, search, converged or exhausted),
    )


def _zero_b_layers(model: nn.Module) -> dict[str, Any]:
    """The model's LoRA layers if the closed form holds for them."""
    layers = adapted_layers(model)
    instead = "measure λ by Lanczos instead (`hessian-lr spectrum`, or predict without --fast)"
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    for name, layer in layers.items():
        if not isinstance(layer, LoraLayer) or not layer.lora_A:
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


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    adapter = layer.active_adapters[0]
    return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight


def _notes(operator: HessianOperator, search: ZeroBSearch, converged: bool) -> tuple[str, ...]:
    notes = []
    if (why := operator.plan.note()) is not None:
        notes.append(why)
    if search.share_of_a > _SADDLE:
        notes.append("B = 0 is a saddle: λ is a gradient's spectral norm rather than a curvature")
    elif search.products > 2:
        notes.append(
            f"curvature over B exceeds the coupling of A and B: the closed form took "
            f"{search.products} products instead of 2"
        )
    if not converged:
        notes.append(
            f"closed form stopped after {search.products} products "
            f"with a residual of {search.rho / search.theta:.0%} of θ"
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
