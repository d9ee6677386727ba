"""The Hessian of an adapter's loss as a matrix that is only ever multiplied with vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .graph_operator import GraphOperator
from .loss import summed_loss
from .nonfinite import nonfinite_loss
from .twice import TwiceDifferentiable
from .vectors import add_to


class HessianOperator(GraphOperator):
    """H = ∇²L over the n trainable parameters of a model, where they are now, on a fixed sample.

    A product is the derivative of g·v, g = ∇L (Pearlmutter 1994): one backward pass through the graph of g.
    Arguments and errors are those of ``GraphOperator``.
    """

    def gradient(self) -> Tensor:
        """g = ∇L, shape (n,), in the parameters' type."""
        total = self._zeros(1)
        with self.over_ranks(total, alike=self.parameters, of="adapter"), self.scope():
            for _, share in self.graphs(twice=not self.plan.rebuilds_all):
                add_to(total[0], share)
        return total[0]

    def build(self, index: int, twice: bool) -> list[Tensor]:
        """Microbatch ``index``'s share of g, one tensor a parameter; all of them sum to g."""
        with TwiceDifferentiable(self.dtype, self._cast_weights):
            loss = summed_loss(self.model, self.batches[index])
        if not bool(torch.isfinite(loss)):
            raise nonfinite_loss(self.model, self.batches[index], self.dtype, "the loss")
        self._require_graph(loss)
        self._losses[index] = float(loss.detach())
        return list(
            torch.autograd.grad(
                loss / self.labels, self.parameters, create_graph=twice, materialize_grads=True
            )
        )

    def product(self, graph: list[Tensor], piece: list[Tensor], keep: bool) -> Sequence[Tensor]:
        """A microbatch's share of H·v from its share of g."""
        return torch.autograd.grad(graph, self.parameters, piece, retain_graph=keep, materialize_grads=True)
