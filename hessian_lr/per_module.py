"""Curvature module by module: every adapted module's own diagonal block of the Hessian, all at once.

For module i with adapter parameters θᵢ, λᵢ = λ_max(∂²L/∂θᵢ²). The blocks share one graph of the
gradient: the product of block i is the derivative of gᵢ·vᵢ over θᵢ alone, for which autograd runs
only what lies between module i and the loss, twice over. All modules go through Lanczos in step, so
that a graph that memory cannot hold is rebuilt once for all of them rather than once for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .adapter_modules import cost_shares, owned_parameters, places
from .curvature.loss import Batch
from .curvature.operator import HessianOperator, flatten, unflatten
from .distributed import require_shared
from .errors import HessianLRError, RequestError
from .measure import peak_rss_bytes
from .records import Record, digest
from .spectrum import Eigenvalue, upper_bound
from .spectrum.basis import Basis
from .spectrum.certificate import CONFIDENCE
from .spectrum.lanczos import BREAKDOWN, start_vector
from .spectrum.stopping import check_stopping, error_estimate, settled

#: Called after every product with (modules that are done, all modules, where the work stands).
ModuleProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ModuleSharpness(Record):
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


@dataclass(frozen=True)
class ModuleSpectrum(Record):
    """λᵢ of every adapted module, in the model's order, with what all of them together cost.

    Attributes:
        modules: One record for each module.
        confidence: Probability with which each ``lambda_upper`` holds, taken by itself.
        matvecs: Products with blocks, over all modules.
        gradient_equivalents: All work, in gradients of the loss over the sample. A block's product
            counts as the share of the model's weights that stand between the module and the loss
            (the head's by the share of tokens that are labelled), as a whole product counts 1.
        seconds: Wall time.
        peak_rss_bytes: The process's largest resident memory so far.
        loss: L at the point, in nats a token; null where it is not finite.
        tokens: Tokens of the sample, padding included.
        notes: What a reader should know of how it was obtained.
    """

    modules: tuple[ModuleSharpness, ...]
    confidence: float
    matvecs: int
    gradient_equivalents: float
    seconds: float
    peak_rss_bytes: int
    loss: float | None
    tokens: int
    notes: tuple[str, ...] = ()


def module_sharpness(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    rtol: float = 0.05,
    max_products: int = 20,
    dtype: torch.dtype = torch.float32,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: ModuleProgress | None = None,
) -> ModuleSpectrum:
    """Measure λᵢ, the largest eigenvalue of ∂²L/∂θᵢ², for every adapted module of a PEFT model.

    The model and the random state are left exactly as they were found. Beside the graphs, memory
    holds a Lanczos basis of at most ``max_products`` vectors for every module that has not converged.

    Args:
        model: A causal language model with a PEFT adapter. A parameter belongs to the adapted module
            it stands in; those that stand in several or in none are left out, and a note says so.
        batches: The sample as dictionaries of ``input_ids``, ``attention_mask``, ``labels``, each
            (samples, tokens); any split into microbatches gives the same λᵢ.
        rtol: Relative error of λᵢ at which a module has converged (the rule is that of
            ``spectrum.lanczos``) and takes no part in later steps.
        max_products: Products spent on one module at most.
        dtype: Precision of the products: float32, bfloat16 (autocast), or float64.
        memory_budget: Bytes that kept graphs may fill (0: rebuild all; None: decide here).
        seed: With each module's name, the seed of its random start vector.
        progress: Called after each module's product with (modules done, modules, where it stands).

    Returns:
        A ``ModuleSpectrum``. A failure of the work (a non-finite loss, no memory) leaves the status
        ``"failed"`` and no number with the modules that had not converged, its reason in ``notes``.

    Raises:
        RequestError: nothing trainable, no adapted module, nothing labelled, a bad tolerance.
    """
    check_stopping(rtol, max_products)
    began = time.perf_counter()
    operator = HessianOperator(model, batches, dtype=dtype, memory_budget=memory_budget)
    blocks, notes = _blocks(model, operator, rtol=rtol, max_products=max_products, seed=seed)
    loss = None
    try:
        for step in range(1, max_products + 1):
            active = [block for block in blocks if not block.done]
            if not active:
                break
            images = _multiply(
                operator, active, _telling(progress, step, len(blocks) - len(active), len(blocks))
            )
            for block, image in zip(active, images, strict=True):
                block.advance(image)
        loss = operator.loss
    except (HessianLRError, MemoryError, torch.OutOfMemoryError) as error:
        if getattr(error, "exit_status", 1) == 2:
            raise
        require_shared(error)
        notes.append(str(error) or type(error).__name__)
    if bad := [block.name for block in blocks if block.failed]:
        notes.append(f"products with the blocks of {len(bad)} modules are not finite, first {bad[0]}")
    if loss is not None and (why := operator.plan.note()):
        notes.append(why.replace("for each product", "for each step"))
    work = operator.cost.gradient_equivalents + sum(block.share * block.products for block in blocks)
    return ModuleSpectrum(
        modules=tuple(block.result() for block in blocks),
        confidence=CONFIDENCE,
        matvecs=sum(block.products for block in blocks),
        gradient_equivalents=round(work, 3),
        seconds=round(time.perf_counter() - began, 3),
        peak_rss_bytes=peak_rss_bytes(),
        loss=loss,
        tokens=operator.tokens,
        notes=tuple(notes),
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
        gap = max(0.0, theta - float(values[-2] + residuals[-2])) if m > 1 else 0.0
        alphas, betas = np.diag(projected).copy(), np.diag(projected, -1).copy()
        exhausted = m == size or beta <= floor * max(abs(theta), abs(float(values[0])), beta)
        converged = exhausted or settled(theta, error_estimate(residual, gap), alphas, betas, size, rtol)
        if converged or m == max_products:
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


class _Block:
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
        self.products = 0
        self.found: Eigenvalue | None = None
        self.failed = False
        first = parameters[0]
        kept = torch.float64 if first.dtype is torch.float64 else torch.float32
        start = start_vector(self.size, module_seed(seed, name), None, first.device, kept)
        self.steps: Generator[Tensor, Tensor, Eigenvalue] | None = _lanczos_steps(start, rtol, max_products)
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
        if self.done:
            self.steps = None  # and the basis with it

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
        )


def _multiply(
    operator: HessianOperator, blocks: Sequence[_Block], report: Callable[[str], None]
) -> list[Tensor]:
    """Hᵢᵢ·vᵢ of each block, from one pass over the microbatches' graphs."""
    images = [torch.zeros_like(block.vector) for block in blocks]
    with operator.over_ranks(*images), operator.scope():
        for _, gradient in operator.graphs():
            for block, image in zip(blocks, images, strict=True):
                image += block.product(gradient)
                report(block.name)
            # Else it would still be in memory while the next one is built.
            del gradient
    return images


def _telling(progress: ModuleProgress | None, step: int, done: int, modules: int) -> Callable[[str], None]:
    return lambda name: None if progress is None else progress(done, modules, f"step {step}: {name}")


def _blocks(
    model: nn.Module, operator: HessianOperator, *, rtol: float, max_products: int, seed: int
) -> tuple[list[_Block], list[str]]:
    """The adapted modules that own trainable parameters, and a note on the parameters left out.

    Raises:
        RequestError: there is none.
    """
    owned = owned_parameters(model, operator.parameters)
    if not owned:
        raise RequestError(
            "no trainable parameter belongs to one adapted module: wrap the model with a PEFT adapter that "
            "changes its linear modules (LoRA and its kin) first"
        )
    shares = cost_shares(model, owned, operator.labels / operator.tokens)
    blocks = [
        _Block(
            name,
            layer,
            kind,
            positions,
            [operator.parameters[position] for position in positions],
            shares[name],
            rtol=rtol,
            max_products=max_products,
            seed=seed,
        )
        for (name, positions), (layer, kind) in zip(owned.items(), places(list(owned)), strict=True)
    ]
    left_out = operator.size - sum(block.size for block in blocks)
    notes = [f"{left_out} trainable parameters belong to no one module and are left out"] if left_out else []
    return blocks, notes


def module_seed(seed: int, name: str) -> int:
    """The seed of a module's start vector: the module's own, whatever else is measured."""
    return int(digest([seed, name]), 16) % 2**63
