"""The Hessian of an adapter's loss as a matrix that is only ever multiplied with vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..causal import looks_ahead
from ..distributed import team
from ..errors import NotTwiceDifferentiable, RequestError
from ..models.identity import glance
from .batches import Batch, count_labels, count_tokens, require_labels, to_device
from .caveats import mixes_rows
from .four_bits import four_bit_layers
from .loss import require_finite, summed_loss
from .measurable import is_sharded, require_measurable
from .microbatches import microbatches
from .modes import base_model, compute_in, differentiable_attention, quiet_model, unwrapped_checkpoints
from .nonfinite import nonfinite_loss
from .once import require_twice, told_once
from .plan import Plan
from .twice import TwiceDifferentiable
from .vectors import add_to, inner, unflatten


@dataclass
class Cost:
    """What has been spent.

    Attributes:
        matvecs: Hessian-vector products.
        gradient_equivalents: Work in units of one gradient of the loss over the sample (forward
            and backward with the base frozen, 4N FLOP a token): a product with kept graphs counts
            1, one that rebuilds them 2, a forward pass alone ½.
    """

    matvecs: int = 0
    gradient_equivalents: float = 0.0


class HessianOperator:
    """H = ∇²L over the n trainable parameters of a model, where they are now, on a fixed sample.

    A product is the derivative of g·v, g = ∇L (Pearlmutter 1994). The graph of g is kept for as
    many microbatches as the memory budget allows, so that their products cost one backward
    pass through it; for the others it is rebuilt each time.

    Within ``distributed.across_ranks`` each rank works on its own of the microbatches, and whatever
    comes out here, costs included, is of all of them: one all-reduce a product.

    Args:
        model: The model; only parameters with ``requires_grad`` count.
        batches: The sample; any split into batches gives the same H. Rows are sorted by length and
            put into microbatches here, without the padding they do not need.
        dtype: Precision of the matrix products: bfloat16 (autocast), the parameters' own type, or float32,
            which leaves them as they are.
        memory_budget: Bytes that kept graphs may fill; 0 rebuilds all, None takes a share of
            what is free now.

    Raises:
        RequestError: no trainable parameter, no labelled token, batches without what a loss needs, a type
            that products cannot have, or another rank has another sample, model or arguments.
        NotTwiceDifferentiable: the model is sharded over processes.
    """

    exact = True

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        dtype: torch.dtype = torch.float32,
        memory_budget: int | None = None,
    ) -> None:
        if not isinstance(dtype, torch.dtype):
            raise RequestError(f"dtype must be a type of torch's, such as torch.float32, not {dtype!r}")
        self.model = model
        self.parameters = require_measurable(model)
        if self.exact and is_sharded(model):
            raise NotTwiceDifferentiable(
                "FSDP2 gathers sharded weights for one backward pass, not for a second, which only "
                "sharpness and predict_learning_rate can do without"
            )
        self.device = self.parameters[0].device
        self.dtype = dtype
        kind = self.parameters[0].dtype
        if dtype not in (torch.float32, torch.bfloat16, kind):
            raise RequestError(
                f"products in {dtype} need an adapter in it, and this one is {kind}: convert the model "
                f"(model.to({dtype})), or ask for float32 or bfloat16"
            )
        if dtype is torch.bfloat16 and kind is torch.float64:
            raise RequestError(
                "products in bfloat16 are autocast's, which leaves float64 as it is, and this adapter is "
                "float64: ask for torch.float64, or convert the model (model.float())"
            )
        self._require_causal()
        self.labels = require_labels(batches)
        self.batches = [to_device(batch, self.device) for batch in microbatches(batches, self.device)]
        self.weights = [count_labels(batch) for batch in self.batches]
        self.tokens = count_tokens(self.batches)
        self.size = sum(p.numel() for p in self.parameters)
        self.cost = Cost()
        tokens = [count_tokens([batch]) for batch in self.batches]
        self._team = team()
        self._mine = self._team.share(tokens)
        devices = [parameter.device for parameter in self.parameters]
        self.plan = Plan(devices, {index: tokens[index] for index in self._mine}, memory_budget)
        self.batch_forms: list[float] = []
        self._graphs: dict[int, list[Tensor]] = {}
        self._seen = self._versions()
        self._losses: dict[int, float] = {}
        self._cast_weights: dict[int, tuple[Tensor, Tensor]] = {}
        if self._team.size > 1:
            self._require_alike()

    @property
    def kept(self) -> int:
        """How many microbatches have their gradient's graph in memory."""
        return len(self._graphs)

    @property
    def loss(self) -> float:
        """L, the token-weighted mean cross-entropy in nats; known after the first product or gradient."""
        return sum(self._losses[i] for i in range(len(self.batches))) / self.labels

    def gradient(self) -> Tensor:
        """g = ∇L, shape (n,), in the parameters' type."""
        total = self._zeros(1)
        with self.over_ranks(total, alike=self.parameters, of="adapter"), self.scope():
            for _, share in self.graphs(twice=not self.plan.rebuilds_all):
                add_to(total[0], share)
        return total[0]

    def matvec(self, vector: Tensor) -> Tensor:
        """H·v.

        Also leaves in ``batch_forms`` each microbatch's own Rayleigh form v·H_b·v (H_b the Hessian
        of the mean loss over microbatch b), whose scatter is the sampling error of v·H·v.

        Args:
            vector: v, shape (n,).

        Returns:
            H·v, shape (n,), in the parameters' type.

        Raises:
            NonFiniteError: the loss or the product is NaN or infinite.
        """
        return self.matmat(vector.unsqueeze(1)).squeeze(1)

    def matmat(self, block: Tensor) -> Tensor:
        """H·V.

        A microbatch whose graph is not kept is rebuilt once for all columns, so k products cost
        k + 1 gradients instead of 2k. ``batch_forms`` is left as by ``matvec`` with the last column.

        Args:
            block: V, shape (n, k).

        Returns:
            H·V, shape (n, k), in the parameters' type.

        Raises:
            NonFiniteError: the loss or the product is NaN or infinite.
        """
        columns = [c.contiguous() for c in block.to(self.device, self.parameters[0].dtype).unbind(1)]
        pieces = [unflatten(column, self.parameters) for column in columns]
        total = self._zeros(len(columns))
        forms = torch.zeros(len(self.batches), dtype=torch.float64, device=self.device)
        with self.over_ranks(total, forms, alike=columns), self.scope():
            for index, share in self.graphs():
                labels = self.weights[index]
                for column, piece in enumerate(pieces):
                    keep = index in self._graphs or column + 1 < len(pieces)
                    product = self._product(share, piece, keep)
                    add_to(total[column], product)
                    self.cost.gradient_equivalents += labels / self.labels
                forms[index] = inner(product, piece) * self.labels / labels
                del share, product
        self.batch_forms = forms.tolist()
        self.cost.matvecs += len(columns)
        require_finite(total, "a Hessian-vector product")
        return total.t()

    def graphs(self, twice: bool = True) -> Iterator[tuple[int, list[Tensor]]]:
        """The index of each of this rank's microbatches and its share of g, which all sum to g.

        A share is one tensor a parameter. To be used within ``scope``. With ``twice`` the shares can be
        differentiated; a kept one must then be differentiated with ``retain_graph=True``, like any that is
        used more than once.
        """
        if self._versions() != self._seen:
            # The parameters were written to: kept graphs are of a point that is no more.
            self.release()
            self._seen = self._versions()
        for index in self._mine:
            yield index, self._graphs.get(index) or self._build(index, twice)

    @contextmanager
    def over_ranks(
        self, *tensors: Tensor, alike: Sequence[Tensor] = (), of: str = "vector"
    ) -> Iterator[None]:
        """On leaving, the tensors are summed over the ranks, and loss and cost are of all of them.

        Arguments and errors are those of ``Team.summing``. Does nothing where this process is alone.
        """
        if self._team.size == 1:
            yield
            return
        before = self.cost.gradient_equivalents
        told = torch.zeros(1 + len(self.batches), dtype=torch.float64, device=self.device)
        with self._team.summing(told, *tensors, alike=alike, of=of):
            yield
            told[0] = self.cost.gradient_equivalents - before
            for index in self._mine:
                told[1 + index] = self._losses.get(index, 0.0)
        work, *losses = told.tolist()
        self.cost.gradient_equivalents = before + work
        self._losses = dict(enumerate(losses))

    def note(self) -> str | None:
        """What a reader should know of how products are had."""
        return self.plan.note()

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

    def _product(self, share: list[Tensor], piece: list[Tensor], keep: bool) -> Sequence[Tensor]:
        """A microbatch's share of H·v from its share of g."""
        return torch.autograd.grad(share, self.parameters, piece, retain_graph=keep, materialize_grads=True)

    def _build(self, index: int, twice: bool) -> list[Tensor]:
        """Microbatch ``index``'s share of g; with ``twice`` its graph is kept if that fits."""
        with self.plan.measure(index):
            with TwiceDifferentiable(self.dtype, self._cast_weights):
                loss = summed_loss(self.model, self.batches[index])
            if not bool(torch.isfinite(loss)):
                raise nonfinite_loss(self.model, self.batches[index], self.dtype, "the loss")
            self._require_graph(loss)
            self._losses[index] = float(loss.detach())
            share = list(
                torch.autograd.grad(
                    loss / self.labels, self.parameters, create_graph=twice, materialize_grads=True
                )
            )
        self.cost.gradient_equivalents += self.weights[index] / self.labels
        if twice and self.plan.keeps(index):
            self._graphs[index] = share
        return share

    def _require_causal(self) -> None:
        """Refuse a model whose labels are not predicted, but read."""
        base = base_model(self.model)
        with quiet_model(self.model):
            # Where it is the adapter that looks ahead, a note says so.
            if not mixes_rows(self.model) and looks_ahead(base):
                raise RequestError(
                    f"{type(base).__name__} sees the tokens it is to predict, so that its loss says nothing: "
                    "curvature is that of a causal language model's loss (BERT and its kin are one with "
                    "is_decoder=True in from_pretrained)"
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

    def _require_alike(self) -> None:
        """Refuse, once, before anything is built on it, ranks that do not measure the same.

        They would sum nonsense, or wait for numbers of another length.
        """
        sample = [batch[name] for batch in self.batches for name in sorted(batch)]
        for alike, of in (
            (sample, "sample"),
            ([f"{type(self).__name__} {self.dtype}"], "operator or dtype"),
            ([glance(self.model)], "model"),
            (self.parameters, "adapter"),
        ):
            with self._team.summing(torch.zeros(1, device=self.device), alike=alike, of=of):
                pass

    def _versions(self) -> list[int]:
        """Torch's own count of the times each parameter was written to."""
        return [parameter._version for parameter in self.parameters]

    def _zeros(self, rows: int) -> Tensor:
        return torch.zeros(rows, self.size, dtype=self.parameters[0].dtype, device=self.device)
