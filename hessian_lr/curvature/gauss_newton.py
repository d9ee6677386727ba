"""The Gauss-Newton matrix of an adapter's loss: the part of the Hessian that cannot be negative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .cross_entropy import bent, logsumexp, summed_cross_entropy
from .graph_operator import GraphOperator
from .loss import labelled_logits, require_finite
from .twice import TwiceDifferentiable
from .vectors import add_to


class GaussNewtonOperator(GraphOperator):
    """G = Jᵀ·H_z·J, J the derivative of the logits z over the parameters, H_z the loss's Hessian over z.

    H = G + Σ (∂L/∂z)·∇²z; for cross-entropy G is also the Fisher matrix (Martens, JMLR 21, 2020). J·v is
    had by two backward passes: Jᵀ·u is linear in u, so its derivative over u along v is J·v. With
    the graphs kept a product costs one gradient, as for H. Arguments and errors are those of
    ``GraphOperator``.
    """

    def gradient(self) -> Tensor:
        """g = ∇L, shape (n,), in the parameters' type."""
        total = self._zeros(1)
        with self.over_ranks(total, alike=self.parameters, of="adapter"), self.scope():
            for index in self._mine:
                _, loss = self._forward(index)
                share = torch.autograd.grad(loss / self.labels, self.parameters, materialize_grads=True)
                self._charge(index)
                add_to(total[0], share)
        return total[0]

    def build(self, index: int, twice: bool) -> list[Tensor]:
        """The logits, their ``logsumexp``, a dummy cotangent u, and Jᵀ·u, with their graphs."""
        logits, _ = self._forward(index)
        cotangent = torch.zeros_like(logits, requires_grad=True)
        pulled = torch.autograd.grad(
            logits, self.parameters, cotangent, create_graph=twice, materialize_grads=True
        )
        return [logits, logsumexp(logits), cotangent, *pulled]

    def product(self, graph: list[Tensor], piece: list[Tensor], keep: bool) -> Sequence[Tensor]:
        """A microbatch's share of G·v."""
        logits, normalizers, cotangent, *pulled = graph
        # Of v, which is small: of the logits' size a share of one in bfloat16 would be rounded again.
        shares = [one / self.labels for one in piece]
        (along,) = torch.autograd.grad(pulled, cotangent, shares, retain_graph=True, materialize_grads=True)
        return torch.autograd.grad(
            logits,
            self.parameters,
            bent(logits.detach(), normalizers, along),
            retain_graph=keep,
            materialize_grads=True,
        )

    def _forward(self, index: int) -> tuple[Tensor, Tensor]:
        """A microbatch's logits, and its summed loss."""
        with TwiceDifferentiable(self.dtype, self._cast_weights):
            logits, targets = labelled_logits(self.model, self.batches[index])
        self._require_graph(logits)
        loss = summed_cross_entropy(logits, targets)
        require_finite(loss, "the loss")
        self._losses[index] = float(loss.detach())
        return logits, loss
