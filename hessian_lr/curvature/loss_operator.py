"""What all matrices of a loss's second derivatives share: sample, ranks, costs, and the conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batches import Batch, count_labels, count_tokens, require_labels, to_device
from ..causal import looks_ahead
from ..distributed import team
from ..errors import RequestError
from ..models.identity import glance
from .caveats import mixes_rows
from .inputs import require_inputs
from .measurable import require_measurable
from .microbatches import microbatches
from .modes import base_model, quiet_model
from .plan import Plan


@dataclass
class Cost:
    """What has been spent.

    Attributes:
        matvecs: Products with vectors.
        gradient_equivalents: Work in units of one gradient of the loss over the sample (forward
            and backward with the base frozen, 4N FLOP a token): a product with kept graphs counts
            1, one that rebuilds them 2, a forward pass alone ½.
    """

    matvecs: int = 0
    gradient_equivalents: float = 0.0


class LossOperator(ABC):
    """A symmetric matrix of second derivatives of a model's loss L over its n trainable parameters.

    It is only ever multiplied with vectors, and is that of a fixed sample where the parameters are now.

    Within ``distributed.across_ranks`` each rank works on its own of the microbatches, and whatever
    comes out here, costs included, is of all of them: one all-reduce a product.

    Args:
        model: The model; only parameters with ``requires_grad`` count.
        batches: The sample; any split into batches gives the same matrix. Rows are sorted by length and
            put into microbatches here, without the padding they do not need.
        dtype: Precision of the matrix products: bfloat16 (autocast), the parameters' own type, or float32,
            which leaves them as they are.
        memory_budget: Bytes that kept graphs may fill; 0 rebuilds all, None takes a share of
            what is free now.

    Attributes:
        batch_forms: Each microbatch's own Rayleigh form v·M_b·v (M_b the matrix of the mean loss over
            microbatch b) of the last product's vector v, whose scatter is the sampling error of v·M·v.

    Raises:
        RequestError: no trainable parameter, no labelled token, batches without what a loss needs or with
            tokens that the model has not, a type that products cannot have, or another rank has another
            sample, model or arguments.
    """

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
        self._require_products()
        self.device = self.parameters[0].device
        self.dtype = dtype
        self._require_type()
        self._require_causal()
        self.labels = require_labels(batches)
        cut = microbatches(batches, self.device)
        require_inputs(model, cut)
        self.batches = [to_device(batch, self.device) for batch in cut]
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
        self._losses: dict[int, float] = {}
        if self._team.size > 1:
            self._require_alike()

    @abstractmethod
    def gradient(self) -> Tensor:
        """g = ∇L, shape (n,), in the parameters' type."""

    @abstractmethod
    def matmat(self, block: Tensor) -> Tensor:
        """M·V; ``batch_forms`` is left as by ``matvec`` with the last column.

        Args:
            block: V, shape (n, k).

        Returns:
            M·V, shape (n, k), in the parameters' type.

        Raises:
            NonFiniteError: the loss or the product is NaN or infinite.
        """

    @abstractmethod
    def scope(self) -> AbstractContextManager[None]:
        """Where the loss is differentiated: the model's modes and the precision as they must be."""

    @abstractmethod
    def release(self) -> None:
        """Give back the memory of what is kept between products; the next one makes it anew."""

    @abstractmethod
    def _require_products(self) -> None:
        """Refuse a model of which such products cannot be had."""

    def matvec(self, vector: Tensor) -> Tensor:
        """M·v, of which ``batch_forms`` then tells.

        Args:
            vector: v, shape (n,).

        Returns:
            M·v, shape (n,), in the parameters' type.

        Raises:
            NonFiniteError: the loss or the product is NaN or infinite.
        """
        return self.matmat(vector.unsqueeze(1)).squeeze(1)

    @property
    def loss(self) -> float:
        """L, the token-weighted mean cross-entropy in nats; known after the first product or gradient."""
        return sum(self._losses[i] for i in range(len(self.batches))) / self.labels

    def note(self) -> str | None:
        """What a reader should know of how products are had."""
        return self.plan.note()

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

    def _columns(self, block: Tensor) -> list[Tensor]:
        """The columns of a block of vectors, where the parameters are and in their type."""
        return [c.contiguous() for c in block.to(self.device, self.parameters[0].dtype).unbind(1)]

    def _charge(self, index: int) -> None:
        """Count a microbatch's share of one gradient over the sample."""
        self.cost.gradient_equivalents += self.weights[index] / self.labels

    def _require_type(self) -> None:
        dtype, kind = self.dtype, self.parameters[0].dtype
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
