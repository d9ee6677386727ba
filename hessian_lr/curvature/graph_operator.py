"""Products through the graphs of first derivatives, which are kept as long as memory allows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..errors import NotTwiceDifferentiable, RequestError
from .four_bits import four_bit_layers
from .loss import require_finite
from .loss_operator import LossOperator
from .measurable import is_sharded
from .modes import compute_in, differentiable_attention, quiet_model, unwrapped_checkpoints
from .once import require_twice, told_once
from .vectors import add_to, inner, unflatten


class GraphOperator(LossOperator):
    """A matrix whose products are backward passes through graphs that are kept, or built again.

    Graphs are kept for as many microbatches as the memory budget allows, so that their products cost one
    backward pass through each; for the others they are rebuilt each time. Arguments are those of
    ``LossOperator``.

    Raises:
        RequestError: as ``LossOperator``.
        NotTwiceDifferentiable: the model is sharded over processes.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        dtype: torch.dtype = torch.float32,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__(model, batches, dtype=dtype, memory_budget=memory_budget)
        self._graphs: dict[int, list[Tensor]] = {}
        self._seen = self._versions()
        self._cast_weights: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def kept(self) -> int:
        """How many microbatches have their graph in memory."""
        return len(self._graphs)

    def rebuilds(self) -> bool:
        """Whether a graph, of any rank, is built anew for each product; those that are not are built now.

        Where none is kept one is built all the same, so that the plan knows what it takes.
        """
        rebuilt = torch.zeros(1, device=self.device)
        # Each rank has its own memory, and may be the only one that keeps graphs or keeps none.
        with self.over_ranks(rebuilt), self.scope():
            for _, graph in self.graphs():
                del graph
                if self.plan.rebuilds_all:
                    break
            rebuilt += len(self._mine) - self.kept
        return bool(rebuilt)

    def matmat(self, block: Tensor) -> Tensor:
        """M·V.

        A microbatch whose graph is not kept is rebuilt once for all columns, so k products cost
        k + 1 gradients instead of 2k. ``batch_forms`` is left as by ``matvec`` with the last column.

        Args:
            block: V, shape (n, k).

        Returns:
            M·V, shape (n, k), in the parameters' type.

        Raises:
            NonFiniteError: the loss or the product is NaN or infinite.
        """
        columns = self._columns(block)
        pieces = [unflatten(column, self.parameters) for column in columns]
        total = self._zeros(len(columns))
        forms = torch.zeros(len(self.batches), dtype=torch.float64, device=self.device)
        with self.over_ranks(total, forms, alike=columns), self.scope():
            for index, graph in self.graphs():
                labels = self.weights[index]
                for column, piece in enumerate(pieces):
                    keep = index in self._graphs or column + 1 < len(pieces)
                    product = self.product(graph, piece, keep)
                    add_to(total[column], product)
                    self._charge(index)
                forms[index] = inner(product, piece) * self.labels / labels
                del graph, product
        self.batch_forms = forms.tolist()
        self.cost.matvecs += len(columns)
        require_finite(total, "a Hessian-vector product")
        return total.t()

    def graphs(self, twice: bool = True) -> Iterator[tuple[int, list[Tensor]]]:
        """The index of each of this rank's microbatches, and what ``build`` makes of it.

        To be used within ``scope``. With ``twice`` it can be differentiated; a kept one must then be
        differentiated with ``retain_graph=True``, like any that is used more than once.
        """
        if self._versions() != self._seen:
            # The parameters were written to: kept graphs are of a point that is no more.
            self.release()
            self._seen = self._versions()
        for index in self._mine:
            yield index, self._graphs.get(index) or self._built(index, twice)

    @abstractmethod
    def build(self, index: int, twice: bool) -> list[Tensor]:
        """The tensors that products with microbatch ``index`` go through; with ``twice`` in a graph."""

    @abstractmethod
    def product(self, graph: list[Tensor], piece: list[Tensor], keep: bool) -> Sequence[Tensor]:
        """A microbatch's share of M·v, one tensor a parameter.

        Args:
            graph: What ``build`` made of the microbatch.
            piece: v, one tensor a parameter.
            keep: Whether the graph is used again.
        """

    def release(self) -> None:
        """Give the kept graphs' memory back; the next product builds them anew."""
        self._graphs.clear()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Where graphs are built and differentiated: modes, attention and precision as they must be."""
        with (
            told_once(),
            self.plan.explained(self.dtype),
            quiet_model(self.model),
            unwrapped_checkpoints(self.model),
            differentiable_attention(self.model),
            four_bit_layers(self.model, self.dtype),
            torch.enable_grad(),
            compute_in(self.device, self.dtype),
        ):
            yield

    def _built(self, index: int, twice: bool) -> list[Tensor]:
        """What ``build`` makes, which is kept if there is to be a second time and it fits."""
        with self.plan.measure(index):
            graph = self.build(index, twice)
        self._charge(index)
        if twice and self.plan.keeps(index):
            self._graphs[index] = graph
        return graph

    def _require_products(self) -> None:
        if is_sharded(self.model):
            raise NotTwiceDifferentiable(
                "FSDP2 gathers sharded weights for one backward pass, not for a second, which only "
                "sharpness and predict_learning_rate can do without"
            )

    def _require_graph(self, output: Tensor) -> None:
        """Refuse what cannot be differentiated, or cannot be trusted to; once an operator."""
        if self._losses:
            return
        if not output.requires_grad:
            raise RequestError(
                "the loss does not depend on any trainable parameter: is the adapter disabled, merged into "
                "the weights, or not the active one?"
            )
        # For a gradient too: reentrant checkpoints hide what is inside them from autograd.grad.
        require_twice(output)

    def _versions(self) -> list[int]:
        """Torch's own count of the times each parameter was written to."""
        return [parameter._version for parameter in self.parameters]

    def _zeros(self, rows: int) -> Tensor:
        return torch.zeros(rows, self.size, dtype=self.parameters[0].dtype, device=self.device)
