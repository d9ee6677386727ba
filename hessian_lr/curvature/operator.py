"""The Hessian of an adapter's loss as a matrix that is only ever multiplied with vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from ..errors import RequestError
from .loss import (
    Batch,
    compute_in,
    count_labels,
    count_tokens,
    differentiable_attention,
    quiet_model,
    require_finite,
    summed_loss,
    to_device,
    trainable,
)

# Of the memory that is free when an operator is made, the share that kept graphs may fill. The
# rest is for the Lanczos basis and for what a product needs while it runs.
MEMORY_SHARE = 0.6

# Tokens of a microbatch: a graph of a small model's gradient takes megabytes a token, and a
# processor gains nothing from more at a time; a GPU does.
MICROBATCH_TOKENS = {"cpu": 1024, "cuda": 8192}


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
    """H = ∇²L over the n trainable parameters of a model, on a fixed sample.

    A product is the derivative of g·v, g = ∇L (Pearlmutter 1994). The graph of g is kept for as
    many microbatches as the memory budget allows, so that their products cost one backward
    pass through it; for the others it is rebuilt each time.

    Args:
        model: The model; only parameters with ``requires_grad`` count.
        batches: The sample; any split into batches gives the same H. Large ones are cut into
            microbatches by rows here, and their trailing padding is cut off.
        dtype: Precision of the matrix products: float32, float64, or bfloat16 (autocast).
        memory_budget: Bytes that kept graphs may fill; 0 rebuilds all, None takes a share of
            what is free now.

    Raises:
        RequestError: no trainable parameter, or no labelled token.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        dtype: torch.dtype = torch.float32,
        memory_budget: int | None = None,
    ) -> None:
        self.model = model
        self.parameters = trainable(model)
        self.device = self.parameters[0].device
        self.dtype = dtype
        room = MICROBATCH_TOKENS.get(self.device.type, MICROBATCH_TOKENS["cpu"])
        self.batches = [
            to_device(piece, self.device)
            for batch in batches
            for piece in cut_batch(batch, room)
            if count_labels(piece)
        ]
        self.weights = [count_labels(batch) for batch in self.batches]
        self.labels = sum(self.weights)
        if not self.labels:
            raise RequestError(
                "no token of these batches is labelled (every label is -100): no loss, no curvature"
            )
        self.tokens = count_tokens(self.batches)
        self.size = sum(p.numel() for p in self.parameters)
        self.cost = Cost()
        self.batch_forms: list[float] = []
        self._budget = _free_memory(self.device) * MEMORY_SHARE if memory_budget is None else memory_budget
        self._graphs: dict[int, list[Tensor]] = {}
        self._losses: dict[int, float] = {}
        self._largest_graph = 0.0
        self._in_use_before = _used_memory(self.device)

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
        total = torch.zeros(self.size, dtype=self.parameters[0].dtype, device=self.device)
        with self._scope():
            for index in range(len(self.batches)):
                total += flatten(self._gradient_graph(index, twice=self._budget > 0))
        return total

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
        vector = vector.to(self.device, self.parameters[0].dtype)
        pieces = unflatten(vector, self.parameters)
        total = torch.zeros_like(vector)
        forms: list[float] = []
        with self._scope():
            for index, labels in enumerate(self.weights):
                graph = self._gradient_graph(index)
                keep = index in self._graphs
                product = flatten(
                    torch.autograd.grad(
                        graph, self.parameters, pieces, retain_graph=keep, materialize_grads=True
                    )
                )
                self.cost.gradient_equivalents += labels / self.labels
                forms.append(float(product.double() @ vector.double()) * self.labels / labels)
                total += product
                del graph, product
        self.batch_forms = forms
        self.cost.matvecs += 1
        require_finite(total, "a Hessian-vector product")
        return total

    @contextmanager
    def _scope(self) -> Iterator[None]:
        with (
            quiet_model(self.model),
            differentiable_attention(self.model),
            torch.enable_grad(),
            compute_in(self.device, self.dtype),
        ):
            yield

    def _gradient_graph(self, index: int, twice: bool = True) -> list[Tensor]:
        """Microbatch ``index``'s share of g: from memory, or computed.

        With ``twice`` it has a graph to be differentiated again, which is kept if it fits.
        """
        if index in self._graphs:
            return self._graphs[index]
        before = _used_memory(self.device)
        loss = summed_loss(self.model, self.batches[index])
        require_finite(loss, "the loss")
        self._losses[index] = float(loss.detach())
        graph = list(
            torch.autograd.grad(
                loss / self.labels, self.parameters, create_graph=twice, materialize_grads=True
            )
        )
        self.cost.gradient_equivalents += self.weights[index] / self.labels
        if not twice:
            return graph
        self._largest_graph = max(self._largest_graph, _used_memory(self.device) - before)
        # Kept only while one more graph would still fit: the next one is built on top of it, if
        # only for the time of a product.
        in_use = _used_memory(self.device) - self._in_use_before
        if self._budget > 0 and in_use + self._largest_graph <= self._budget:
            self._graphs[index] = graph
        return graph


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of any shapes as one vector, in order."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``flatten``: views of ``vector`` with the shapes of ``like``."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


def cut_batch(batch: Batch, tokens: int) -> list[Batch]:
    """The batch in pieces of whole rows, each of at most ``tokens`` tokens (but at least one row).

    Columns at the end that are padding in all rows of a piece are cut off.
    """
    rows, columns = batch["input_ids"].shape
    if any(value.shape != (rows, columns) for value in batch.values()):
        return [batch]
    step = max(1, tokens // columns)
    pieces: list[Batch] = []
    for start in range(0, rows, step):
        piece = {name: value[start : start + step] for name, value in batch.items()}
        mask = piece.get("attention_mask")
        used = columns if mask is None or not mask.any() else int(mask.any(dim=0).nonzero().max()) + 1
        pieces.append({name: value[:, :used] for name, value in piece.items()})
    return pieces


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _used_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    # The machine's, not the process's: what other processes take is gone as well, and memory that
    # the allocator has freed but not given back counts as taken only once.
    memory = psutil.virtual_memory()
    return int(memory.total - memory.available)
