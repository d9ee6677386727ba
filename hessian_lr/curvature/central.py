"""The Hessian's products from gradients alone, for models that cannot be differentiated twice.

    H·v ≈ (g(θ + h·u) − g(θ − h·u)) · ‖v‖ / 2h,     u = v/‖v‖

How h is chosen stands in ``central_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..errors import HessianLRError, NotTwiceDifferentiable, RequestError
from .caveats import narrow_types
from .central_step import LONGEST, NARROW, best_step, norm, relative, rows_by_length, weights_used
from .loss import require_finite, summed_loss
from .loss_operator import LossOperator
from .modes import checkpointing, compute_in, quiet_model, without_steps
from .nonfinite import nonfinite_loss
from .once import told_once
from .operator import HessianOperator
from .vectors import displaced, flatten

# Rounding's share of D(2h) − D(h) scatters: the reported error is so many times what was seen.
CAUTION = 2.0
Result = TypeVar("Result")
Root: TypeAlias = Callable[[Tensor], Tensor]


def as_it_is(vector: Tensor) -> Tensor:
    """The root of the plain geometry, in which the Hessian is itself."""
    return vector


class CentralOperator(LossOperator):
    """H, as ``HessianOperator``, by central differences: a product costs two gradients, the memory of one.

    The model runs with its own attention kernels and with gradient checkpointing, if it has it; each
    microbatch goes through ``loss.backward()``, which is what reentrant checkpoints hang on to. The
    step is chosen on the shortest row that has a gradient, at the first product, along that and its image.

    Args:
        model, batches, dtype: As for ``HessianOperator``, but float32 for bfloat16, which is too coarse.
        memory_budget: Of no effect, as no graph is kept; who measures makes any operator from the same
            arguments.
        why: Why products are not exact, for the note.

    Attributes:
        step: h, along a unit vector; None until it has been chosen.
        error: Estimated ‖D(h)·u − H·u‖/‖H·u‖ along the last vector that was checked; None before.

    Raises:
        RequestError: as ``HessianOperator``, or the trainable parameters are narrower than float32: steps
            small enough would be lost in their rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        dtype: torch.dtype = torch.float32,
        memory_budget: int | None = None,
        why: str = "as asked",
    ) -> None:
        # Of bfloat16 gradients no step leaves more than noise, mostly (tests/curvature/test_central.py).
        exact = torch.float32 if dtype is torch.bfloat16 else dtype
        super().__init__(model, batches, dtype=exact, memory_budget=0)
        self._longest = NARROW if narrow_types(model) else LONGEST
        self.why = why if exact is dtype else f"{why}; in float32, as bfloat16 is too coarse for them"
        self.step: float | None = None
        self.error: float | None = None
        self._row: tuple[Batch, int] | None = None

    def note(self) -> str:
        """That products are differences, why, with which step, and how far off they may be."""
        told = f"products by central differences ({self.why})"
        if self.step is not None:
            told += f", step {self.step:.2g}"
        if self.error is not None:
            told += f"; the one that was checked is off by at most {self.error:.1g} of itself, as measured"
        return told

    def release(self) -> None:
        """Nothing: no graph is kept."""

    def gradient(self) -> Tensor:
        """g = ∇L, shape (n,), in the parameters' type."""
        total = self._sum()
        with self.over_ranks(total, alike=self.parameters, of="adapter"), self.scope():
            for index in self._mine:
                gradient, self._losses[index] = self._share(index)
                total.add_(gradient)
        return total.to(self.parameters[0].dtype)

    def matmat(self, block: Tensor) -> Tensor:
        """H·V, column by column; see ``LossOperator.matmat``.

        Raises:
            NonFiniteError: the loss or the product is NaN or infinite.
            HessianLRError: no step gives differences that are more than noise.
        """
        columns = self._columns(block)
        step = self.choose_step() if self.step is None else self.step
        totals = [self._sum() for _ in columns]
        forms = torch.zeros(len(self.batches), dtype=torch.float64, device=self.device)
        with self.over_ranks(*totals, forms, alike=columns), self.scope():
            for column, total in zip(columns, totals, strict=True):
                forms.zero_()
                self._difference(column, step, total, forms)
        self.batch_forms = forms.tolist()
        self.cost.matvecs += len(columns)
        image = torch.stack(totals, dim=1)
        require_finite(image, "a Hessian-vector product")
        return image.to(self.parameters[0].dtype)

    def check(self, vector: Tensor, root: Root = as_it_is) -> float:
        """How far R·H·R·v may be off, as a share of its length, measured along v; kept as ``error``.

        On the whole sample D(2h)·v − D(h)·v, which is no less than the error in either regime, but for
        chance. On the row that h was chosen on D(h)·v is held against an exact product too, where there can
        be one. Twice the larger counts.

        Args:
            vector: v, shape (n,).
            root: v ↦ R·v, the symmetric root of an optimizer's geometry (see ``Geometry``), in which other
                coordinates weigh much.
        """
        before, losses = self.batch_forms, self._losses
        vector = root(vector)
        here, step = root(self.matvec(vector)), self.step
        assert step is not None
        self.step = 2 * step
        try:
            wide = root(self.matvec(vector))
        finally:
            self.step = step
        self.batch_forms, self._losses = before, losses
        self.error = CAUTION * relative(wide - here, here)
        if (exact := self._exact(vector)) is not None:
            off = root(self._on_row(vector, step) - exact)
            self.error = max(self.error, CAUTION * relative(off, root(exact)))
        return self.error

    def choose_step(self, root: Root = as_it_is) -> float:
        """The h at which D(2h)·u − D(h)·u is least on one row, u along g/‖g‖ + H·g/‖H·g‖.

        The row is the shortest that has a gradient: an adapter of some tokens alone is not in every row.

        In the geometry that ``root`` is of (see ``check``), D, H and g are R·D·R, R·H·R and R·g: the step
        that suits the gradient's direction may be a thousandth of what suits the optimizer's.

        Raises:
            HessianLRError: it is a large part of D(h)·u at every h.
        """
        # Some adapters are zero at their start (OFT), and a step in proportion to that is none.
        size = norm(flatten(self.parameters)) or 1.0
        with weights_used(self.model) as types:
            for row in rows_by_length(self.batches):
                self._row = row
                if bool((g := root(self._on_row(None, 0.0))).any()):
                    break
        if narrow := [kind for kind in types if torch.finfo(kind).bits < 32]:
            raise RequestError(
                f"the adapter computes in {narrow[0]}, in which the small steps of central differences are "
                "lost: for the measurement, shard the model without a MixedPrecisionPolicy's param_dtype"
            )
        if not bool(g.any()):
            raise HessianLRError(
                "the gradient is zero: central differences have no direction to choose a step by"
            )

        def difference(vector: Tensor, step: float) -> Tensor:
            return root(self._on_row(root(vector), step))

        self.step = best_step(difference, g, size, self._longest)
        return self.step

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The model as it trains, without dropout; gradients and modes are left as they were."""
        kept = [parameter.grad for parameter in self.parameters]
        with (
            self.plan.explained(self.dtype),
            quiet_model(self.model),
            checkpointing(self.model),
            without_steps(self.parameters),
            torch.enable_grad(),
            compute_in(self.device, self.dtype),
        ):
            try:
                yield
            finally:
                for parameter, gradient in zip(self.parameters, kept, strict=True):
                    parameter.grad = gradient

    def _require_products(self) -> None:
        kind = self.parameters[0].dtype
        if torch.finfo(kind).bits < 32:
            raise RequestError(
                f"the trainable parameters are {kind}, in which the small steps of central differences are "
                "lost: make the adapter float32 (PEFT does unless autocast_adapter_dtype=False)"
            )

    def _difference(self, vector: Tensor, step: float, total: Tensor, forms: Tensor) -> None:
        """Add D(h)·v to ``total`` and each microbatch's v·D_b(h)·v to ``forms``."""
        length = norm(vector)
        if length == 0.0:
            return
        unit = vector / length
        # L itself, but for a term in h²: the mean of the losses on both sides.
        self._losses = dict.fromkeys(self._mine, 0.0)
        for sign in (1.0, -1.0):
            factor = sign * length / (2 * step)
            with displaced(self.parameters, unit, sign * step):
                for index in self._mine:
                    gradient, loss = self._share(index)
                    self._losses[index] += 0.5 * loss
                    total.add_(gradient, alpha=factor)
                    slope = float(torch.dot(gradient.double(), vector.double()))
                    forms[index] += factor * slope * self.labels / self.weights[index]

    def _share(self, index: int) -> tuple[Tensor, float]:
        """A microbatch's share of g, shape (n,), and its summed loss, where the weights are."""
        self._charge(index)
        return self._backward(self.batches[index], self.labels)

    def _backward(self, batch: Batch, labels: int) -> tuple[Tensor, float]:
        """A batch's share of g, shape (n,), its summed loss over ``labels`` differentiated; and that sum."""
        for parameter in self.parameters:
            parameter.grad = None
        with told_once():
            loss = summed_loss(self.model, batch)
            if not bool(torch.isfinite(loss)):
                raise nonfinite_loss(self.model, batch, self.dtype, "the loss")
            (loss / labels).backward()
        if all(parameter.grad is None for parameter in self.parameters):
            raise RequestError(
                "no gradient reaches the adapter: reentrant checkpoints need "
                "model.enable_input_require_grads()"
            )
        gradient = flatten(
            [
                torch.zeros(p.shape, dtype=p.dtype, device=p.device) if p.grad is None else p.grad
                for p in self.parameters
            ]
        )
        for parameter in self.parameters:
            parameter.grad = None
        return gradient, float(loss.detach())

    def _exact(self, vector: Tensor) -> Tensor | None:
        """H·v of the row that the step was chosen on, or None where there is no second derivative."""
        assert self._row is not None
        row, _ = self._row
        try:
            return HessianOperator(self.model, [row], dtype=self.dtype, memory_budget=0).matvec(vector)
        except NotTwiceDifferentiable:
            return None

    def _on_row(self, vector: Tensor | None, step: float) -> Tensor:
        """D(h)·v of that row's mean loss, in the parameters' type; without a vector its gradient."""
        assert self._row is not None
        row, labels = self._row
        with self.scope():
            self.cost.gradient_equivalents += (1 if vector is None else 2) * labels / self.labels
            if vector is None:
                return self._backward(row, labels)[0]
            length = norm(vector)
            with displaced(self.parameters, vector / length, step):
                ahead = self._backward(row, labels)[0].double()
            with displaced(self.parameters, vector / length, -step):
                apart = (ahead - self._backward(row, labels)[0]) * (length / (2 * step))
        return apart.to(self.parameters[0].dtype)

    def _sum(self) -> Tensor:
        # Two nearly equal gradients leave little of each other: their sums must not add to what is lost.
        return torch.zeros(self.size, dtype=torch.float64, device=self.device)


def twice_or_central(measure: Callable[[Callable[..., LossOperator]], Result]) -> Result:
    """``measure`` with exact products, or from its start with central differences where there are none."""
    try:
        return measure(HessianOperator)
    except NotTwiceDifferentiable as error:
        why = str(error)
    # Not in the handler: the error's traceback holds the graph that is of no use, and its memory.
    return measure(partial(CentralOperator, why=why))
