"""Curvature of an adapter's loss: the model and its batches in, λ with its error out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Batch, count_labels, require_batches
from ..checkpoints import Checkpoints
from ..curvature.central import CentralOperator, twice_or_central
from ..curvature.gauss_newton import GaussNewtonOperator
from ..curvature.inputs import require_inputs
from ..curvature.loss_operator import LossOperator
from ..curvature.microbatches import microbatches
from ..curvature.operator import HessianOperator
from ..distributed import FAILURES, MEMORY, failed
from ..errors import NotTwiceDifferentiable, unknown_name
from ..exhausted import memory_errors
from ..setting import check_counts
from ..spectrum import Eigenvalue
from ..spectrum.lanczos import Progress, dot
from ..spectrum.stopping import check_stopping
from .confirm import (
    differences_checked,
    in_float32,
    saddle_note,
    sampling_error,
    spectrum_notes,
    verified,
)
from .cost import peak_rss_bytes
from .curvature import Curvature
from .how import ALGORITHMS, How
from .unreached import unreached

OPERATORS: dict[str, type[LossOperator]] = {
    "hessian": HessianOperator,
    "gauss-newton": GaussNewtonOperator,
    "central-differences": CentralOperator,
}


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
            dictionaries of tensors, tokens that the model has not, an unknown algorithm or operator, a bad
            tolerance, limit or seed.
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
        require_inputs(model, microbatches(held_out, next(model.parameters()).device))

    def measure(make: Callable[..., LossOperator]) -> Curvature:
        how = How(dtype, memory_budget, seed, progress, checkpoints)
        return _Measurement(make, model, batches, how, rtol, max_products, algorithm).result(held_out)

    return twice_or_central(measure) if operator == "hessian" else measure(OPERATORS[operator])


class _Measurement:
    """λ of one sample, in the operators that it takes, one after the other.

    Args:
        make: Makes them: ``HessianOperator``, or one of its kind.
        model, batches, how, rtol, max_products, algorithm: As for ``sharpness``.
    """

    def __init__(
        self,
        make: Callable[..., LossOperator],
        model: nn.Module,
        batches: Sequence[Batch],
        how: How,
        rtol: float,
        max_products: int,
        algorithm: str,
    ) -> None:
        self.began = time.perf_counter()
        self.make, self.model, self.batches, self.how = make, model, batches, how
        self.rtol, self.max_products, self.algorithm = rtol, max_products, algorithm
        self.used: list[LossOperator] = []
        self.notes: list[str] = []
        self._build(batches, how.dtype, how.memory_budget)

    def result(self, held_out: Sequence[Batch] | None) -> Curvature:
        """λ, or why there is none.

        Raises:
            RequestError: as ``sharpness``.
            NotTwiceDifferentiable: products cannot be made this way.
        """
        try:
            with memory_errors():
                return self._measured(held_out)
        except NotTwiceDifferentiable:
            raise
        except FAILURES as error:
            lacked = isinstance(error, MEMORY)
            return Curvature.failed(failed(error), out_of_memory=lacked, **self._spent())

    def _measured(self, held_out: Sequence[Batch] | None) -> Curvature:
        found, rounding = self._search(), None
        if self.used[0].dtype is torch.bfloat16:
            found, rounding = self._in_float32(found)
        else:
            found = verified(found, self.matrix, self.rtol)
        # That of θ: later operators serve other questions.
        matrix, vector = self.matrix, found.vector
        scatter = sampling_error(matrix.batch_forms, matrix.weights)
        checked, difference_error = differences_checked(found, matrix, vector, self.rtol)
        # Of the search itself; how far differences served is the operator's to tell.
        self.notes += [*spectrum_notes(found, self.used[0]), *saddle_note(found, self.model)]
        unmoved = unreached(self.model, vector, partial(self._another, self.batches))
        unseen, unseen_error = self._on_held_out(held_out, vector)
        return Curvature(
            lambda_max=checked.value,
            lambda_lower=checked.value,
            lambda_upper=checked.upper,
            confidence=checked.confidence if checked.upper is not None else None,
            lambda_min=checked.smallest,
            residual=checked.residual,
            rounding=rounding,
            sampling_error=scatter,
            difference_error=difference_error,
            held_out=unseen,
            held_out_error=unseen_error,
            status=checked.status,
            loss=matrix.loss,
            samples=sum(len(batch["input_ids"]) for batch in matrix.batches),
            unreached=unmoved,
            notes=tuple(self.notes),
            **self._spent(),
        )

    @property
    def matrix(self) -> LossOperator:
        """The operator that is multiplied with at present."""
        return self.used[-1]

    def _build(self, rows: Sequence[Batch], dtype: torch.dtype, budget: int | None) -> LossOperator:
        self.used.append(self.make(self.model, rows, dtype=dtype, memory_budget=budget))
        return self.used[-1]

    def _search(self) -> Eigenvalue:
        return self.how.search(
            self.matrix,
            self.matrix,
            stage="start",
            rtol=self.rtol,
            max_products=self.max_products,
            algorithm=self.algorithm,
        )

    def _in_float32(self, rough: Eigenvalue) -> tuple[Eigenvalue, float | None]:
        """What was found in bfloat16, by products in float32; and how far it was off, where that served."""
        self.matrix.release()

        def build(dtype: torch.dtype, budget: int | None) -> tuple[LossOperator, LossOperator]:
            made = self._build(self.batches, dtype, budget)
            return made, made

        found, rounding, notes = in_float32(
            rough, build, lambda *_: self._search(), self.how.memory_budget, self.rtol
        )
        self.notes += notes
        return found, rounding

    def _another(self, rows: Sequence[Batch]) -> LossOperator:
        """An operator for a product or two beside θ's."""
        self.matrix.release()
        # In θ's own precision, which is not the search's: they are there to be compared.
        return self._build(rows, self.matrix.dtype, 0)

    def _on_held_out(self, rows: Sequence[Batch] | None, vector: Tensor) -> tuple[float | None, float | None]:
        """v·H·v on other rows with its standard error."""
        if not rows or not any(map(count_labels, rows)):
            return None, None
        other = self._another(rows)
        return dot(vector, other.matvec(vector)), sampling_error(other.batch_forms, other.weights)

    def _spent(self) -> dict[str, Any]:
        """The costs and sizes of a measurement; work on other samples counts by its tokens."""
        tokens = self.used[0].tokens
        work = sum(one.cost.gradient_equivalents * one.tokens for one in self.used) / tokens
        return {
            "matvecs": sum(one.cost.matvecs for one in self.used),
            "gradient_equivalents": round(work, 3),
            "seconds": round(time.perf_counter() - self.began, 3),
            "peak_rss_bytes": peak_rss_bytes(),
            "tokens": tokens,
            "parameters": self.used[0].size,
        }
