"""Curvature of an adapter's loss: the model and its batches in, λ with its error out."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn

from ..checkpoints import Checkpoints
from ..curvature.central import CentralOperator, twice_or_central
from ..curvature.gauss_newton import GaussNewtonOperator
from ..curvature.loss import Batch, count_labels, require_batches, trainable
from ..curvature.operator import HessianOperator
from ..curvature.vectors import working_type
from ..digits import percent
from ..distributed import FAILURES, failed
from ..errors import NotTwiceDifferentiable, unknown_name
from ..records import Record
from ..setting import check_counts
from ..spectrum import Eigenvalue, lanczos, power_iteration
from ..spectrum.lanczos import Progress, dot
from ..spectrum.stopping import check_stopping
from .confirm import (
    REFINEMENTS,
    differences_checked,
    refined,
    saddle_note,
    sampling_error,
    spectrum_notes,
    verified,
)
from .unreached import unreached

ALGORITHMS = {"lanczos": lanczos, "power": power_iteration}
OPERATORS: dict[str, type[HessianOperator]] = {
    "hessian": HessianOperator,
    "gauss-newton": GaussNewtonOperator,
    "central-differences": CentralOperator,
}


@dataclass(frozen=True)
class Curvature(Record):
    """The sharpness λ = λ_max(∇²L) over an adapter's parameters, and what is known of its error.

    Attributes:
        lambda_max: The Ritz value θ: a Rayleigh quotient, so θ ≤ λ.
        lambda_lower: λ is at least this, up to the rounding of the products: θ itself.
        lambda_upper: λ is at most this with probability ``confidence`` over the random start.
        confidence: That probability.
        lambda_min: Smallest Ritz value, at least the smallest eigenvalue.
        residual: ρ = ‖H·v − θ·v‖; some eigenvalue lies within ρ of θ.
        rounding: How far θ lay from its value in the lower precision that the eigenvector was found
            in; null where all products had one precision. What a base in a type narrower than
            float32 rounds comes besides.
        sampling_error: Standard error of v·H·v from its scatter over the microbatches; null with
            fewer than two.
        held_out: v·H·v on samples that the eigenvector v has not seen. θ is the largest value that any
            direction has on its own sample and so too large, on average, for the population; this
            one is on average no larger than the population's λ. Null where none were given.
        held_out_error: Its standard error, as ``sampling_error``.
        difference_error: Where products are central differences, how far the one with the eigenvector may be
            off as a share of θ (see ``CentralOperator.check``); null where they are exact.
        samples: Rows of the sample.
        status: ``"converged"``, ``"budget"`` (stopped at the limit; the bounds hold) or ``"failed"``.
        matvecs: Hessian-vector products spent.
        gradient_equivalents: All work, in gradients of the loss over the sample.
        seconds: Wall time.
        peak_rss_bytes: The process's largest resident memory so far.
        loss: L at the point, in nats a token.
        tokens: Tokens of the sample, padding included.
        parameters: n, the number of trainable parameters.
        unreached: How many of them belong to an embedding and get no gradient from the sample, as those of
            tokens that are not in it: training on such rows leaves them where they are.
        notes: What a reader should know of how it was obtained.
    """

    lambda_max: float | None
    lambda_lower: float | None
    lambda_upper: float | None
    confidence: float | None
    lambda_min: float | None
    residual: float | None
    sampling_error: float | None
    status: str
    matvecs: int
    gradient_equivalents: float
    seconds: float
    peak_rss_bytes: int
    loss: float | None
    tokens: int
    parameters: int
    rounding: float | None = None
    held_out: float | None = None
    held_out_error: float | None = None
    difference_error: float | None = None
    samples: int = 0
    unreached: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def failed(cls, reason: str, **spent: Any) -> Curvature:
        """A result without a number: why, and whichever costs and sizes are known."""
        unknown: dict[str, Any] = dict.fromkeys(field.name for field in fields(cls))
        nothing = {"matvecs": 0, "gradient_equivalents": 0.0, "seconds": 0.0, "peak_rss_bytes": 0}
        sizes = {"tokens": 0, "parameters": 0, "unreached": 0}
        return cls(**(unknown | nothing | sizes | spent | {"status": "failed", "notes": (reason,)}))


def sharpness(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch] | None = None,
    rtol: float = 0.05,
    max_products: int = 40,
    algorithm: str = "lanczos",
    operator: str = "hessian",
    dtype: torch.dtype = torch.float32,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> Curvature:
    """The largest eigenvalue of the loss Hessian over the model's trainable parameters.

    The model, its modes, the random state and global flags are left as they were found.

    Products in bfloat16 only find the eigenvector: θ, its residual and the sampling error are those of
    one product in float32 with it. Where the residual does not meet rtol, a few float32 products from
    there follow, and where these do not help, the search is done again in float32.

    Args:
        model: A causal language model with an adapter: what requires a gradient is measured.
        batches: The sample as dictionaries of ``input_ids``, ``attention_mask``, ``labels``, each
            (samples, tokens); any split into microbatches gives the same λ.
        held_out: Other samples, for the eigenvector's quotient on what it has not seen, if any of it is
            labelled.
        rtol: Stop when λ's error is estimated to be at most this share of θ (see ``spectrum.lanczos``).
        max_products: Stop after this many products in any case.
        algorithm: ``"lanczos"`` or ``"power"``.
        operator: ``"hessian"``, ``"gauss-newton"`` for the Gauss-Newton matrix in its place, or
            ``"central-differences"`` for the Hessian from gradients alone, as it is taken in any case where
            the model cannot be differentiated twice (a note then says why).
        dtype: Precision of the products: float32, bfloat16 (autocast), or float64.
        memory_budget: Bytes that kept graphs may fill (0: rebuild all; None: decide here).
        seed: Seed of the random start vector.
        progress: Called after each product with (products, max_products, θ, ρ).
        checkpoints: Where Lanczos's state is kept, so that the same call goes on after a kill.

    Returns:
        A ``Curvature``. A failure of the work (a non-finite loss, no memory) is a result with
        status ``"failed"`` and no number, its reason in ``notes``.

    Raises:
        RequestError: nothing trainable, nothing labelled, batches (also held-out ones) that are not a list of
            dictionaries of tensors, an unknown algorithm or operator, a bad tolerance, limit or seed.
    """
    if algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", algorithm, ALGORITHMS)
    if operator not in OPERATORS:
        raise unknown_name("operator", operator, OPERATORS)
    check_stopping(rtol, max_products)
    check_counts(seed=seed)
    if held_out:
        # Not when all products are spent.
        require_batches(held_out)

    measure = partial(
        _sharpness,
        model=model,
        batches=batches,
        held_out=held_out,
        rtol=rtol,
        max_products=max_products,
        algorithm=algorithm,
        dtype=dtype,
        memory_budget=memory_budget,
        seed=seed,
        progress=progress,
        checkpoints=checkpoints,
    )
    return twice_or_central(measure) if operator == "hessian" else measure(OPERATORS[operator])


def _sharpness(
    make: Callable[..., HessianOperator],
    *,
    model: nn.Module,
    batches: Sequence[Batch],
    held_out: Sequence[Batch] | None,
    rtol: float,
    max_products: int,
    algorithm: str,
    dtype: torch.dtype,
    memory_budget: int | None,
    seed: int,
    progress: Progress | None,
    checkpoints: Checkpoints | None,
) -> Curvature:
    """``sharpness`` with products made by ``make``."""
    began = time.perf_counter()
    matrix = make(model, batches, dtype=dtype, memory_budget=memory_budget)
    used = [matrix]
    notes: list[str] = []
    rounding, unseen, unseen_error = None, None, None

    def search(on: HessianOperator) -> Eigenvalue:
        # A little tighter than asked, so that the residual measured afresh still meets rtol.
        asked: dict[str, Any] = {"rtol": 0.8 * rtol, "max_products": max_products, "seed": seed}
        kept: dict[str, Any] = {}
        if checkpoints is not None and algorithm == "lanczos":
            kept["checkpoint"] = checkpoints.of(on, stage="start", **asked)
        return ALGORITHMS[algorithm](
            on.matvec,
            on.size,
            **asked,
            **kept,
            device=on.device,
            dtype=working_type(on.parameters[0]),
            progress=progress,
        )

    def another(rows: Sequence[Batch]) -> HessianOperator:
        matrix.release()
        # In θ's own precision, which is not the search's: they are there to be compared.
        used.append(make(model, rows, dtype=matrix.dtype, memory_budget=0))
        return used[-1]

    try:
        found = search(matrix)
        if matrix.dtype is torch.bfloat16:
            matrix.release()
            matrix = make(model, batches, dtype=torch.float32, memory_budget=0)
            used.append(matrix)
            rough, found = found, refined(found, matrix, rtol)
            if rough.status == "converged" and found.status != "converged":
                left = percent(found.residual / abs(found.value))
                notes.append(
                    f"bfloat16 did not serve: {REFINEMENTS} products in float32 from its eigenvector leave a "
                    f"residual of {left} of θ; searched again in float32"
                )
                matrix = make(model, batches, dtype=torch.float32, memory_budget=memory_budget)
                used.append(matrix)
                found = verified(search(matrix), matrix, rtol)
            else:
                rounding = abs(rough.value - found.value)
        else:
            found = verified(found, matrix, rtol)
        scatter = sampling_error(matrix.batch_forms, matrix.weights)
        checked, difference_error = differences_checked(found, matrix, found.vector, rtol)
        # Of the search itself; how far differences served is the operator's to tell.
        notes += [*spectrum_notes(found, used[0]), *saddle_note(found, model)]
        found = checked
        unmoved = unreached(model, found.vector, partial(another, batches))
        if held_out and any(map(count_labels, held_out)):
            other = another(held_out)
            unseen = dot(found.vector, other.matvec(found.vector))
            unseen_error = sampling_error(other.batch_forms, other.weights)
    except NotTwiceDifferentiable:
        raise
    except FAILURES as error:
        return Curvature.failed(failed(error), **_spent(used, began))
    return Curvature(
        lambda_max=found.value,
        lambda_lower=found.value,
        lambda_upper=found.upper,
        confidence=found.confidence if found.upper is not None else None,
        lambda_min=found.smallest,
        residual=found.residual,
        rounding=rounding,
        sampling_error=scatter,
        difference_error=difference_error,
        held_out=unseen,
        held_out_error=unseen_error,
        status=found.status,
        loss=matrix.loss,
        samples=sum(len(batch["input_ids"]) for batch in matrix.batches),
        unreached=unmoved,
        notes=tuple(notes),
        **_spent(used, began),
    )


def _spent(used: Sequence[HessianOperator], began: float) -> dict[str, Any]:
    """The costs and sizes of a measurement; work on other samples counts by its tokens."""
    tokens = used[0].tokens
    work = sum(one.cost.gradient_equivalents * one.tokens for one in used) / tokens
    return {
        "matvecs": sum(one.cost.matvecs for one in used),
        "gradient_equivalents": round(work, 3),
        "seconds": round(time.perf_counter() - began, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "tokens": tokens,
        "parameters": used[0].size,
    }


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore trainable weights, their gradients and every random state, bit for bit, on leaving."""
    parameters = trainable(model)
    values = [p.detach().clone() for p in parameters]
    gradients = [p.grad for p in parameters]
    devices = list({p.device for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value, gradient in zip(parameters, values, gradients, strict=True):
                    parameter.copy_(value)
                    parameter.grad = gradient
