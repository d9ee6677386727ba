"""The Gauss-Newton matrix of an adapter's loss: the part of the Hessian that cannot be negative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cross_entropy import summed_cross_entropy
from .loss import labelled_logits, require_finite
from .operator import HessianOperator
from .twice import TwiceDifferentiable


class GaussNewtonOperator(HessianOperator):
    """G = Jᵀ·H_z·J, J the derivative of the logits z over the parameters, H_z the loss's Hessian over z.

    H = G + Σ (∂L/∂z)·∇²z; for cross-entropy G is also the Fisher matrix (Martens, JMLR 21, 2020). J·v is
    had by two backward passes: Jᵀ·u is linear in u, so its derivative over u along v is J·v. With
    the graphs kept a product costs one gradient, as for H. Arguments and errors are those of
    ``HessianOperator``.
    """

    def gradient(self) -> Tensor:
        """g = ∇L, shape (n,), in the parameters' type."""
        return HessianOperator(self.model, self.batches, dtype=self.dtype, memory_budget=0).gradient()

    def _build(self, index: int, twice: bool) -> list[Tensor]:
        """The logits, a dummy cotangent u, and Jᵀ·u, with their graphs."""
        with self.plan.measure(index):
            with TwiceDifferentiable(self.dtype, self._cast_weights):
                logits, targets = labelled_logits(self.model, self.batches[index])
            self._require_graph(logits)
            loss = summed_cross_entropy(logits.detach(), targets)
            require_finite(loss, "the loss")
            self._losses[index] = float(loss)
            cotangent = torch.zeros_like(logits, requires_grad=True)
            pulled = torch.autograd.grad(
                logits, self.parameters, cotangent, create_graph=twice, materialize_grads=True
            )
        self.cost.gradient_equivalents += self.weights[index] / self.labels
        share = [logits, cotangent, *pulled]
        if twice and self.plan.keeps(index):
            self._graphs[index] = share
        return share

    def _product(self, share: list[Tensor], piece: list[Tensor], keep: bool) -> Sequence[Tensor]:
        logits, cotangent, *pulled = share
        (along,) = torch.autograd.grad(pulled, cotangent, piece, retain_graph=True, materialize_grads=True)
        wide = logits.detach() if logits.dtype is torch.float64 else logits.detach().float()
        probabilities = torch.softmax(wide, dim=-1)
        weighted = probabilities * along
        bent = weighted - probabilities * weighted.sum(-1, keepdim=True)
        return torch.autograd.grad(
            logits,
            self.parameters,
            (bent / self.labels).to(logits.dtype),
            retain_graph=keep,
            materialize_grads=True,
        )
