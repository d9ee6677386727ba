"""λ by PyHessian: power iteration, on one batch with its graph kept, or on a loader."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from hessian_lr.batches import IGNORED, Batch, count_labels

from .running import TOLERANCE, Trace


class Logits(nn.Module):
    """PyHessian calls model(inputs): token ids in, logits out. The rows are padded on the right, where a
    causal model needs no mask for what comes before.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


def joint(model: nn.Module, batches: Sequence[Batch], trace: Trace, seed: int, loader: bool) -> float:
    """λ over all modules together.

    Args:
        loader: Whether the batches go in as a loader, each rebuilt for each product, or are padded to one
            batch, whose gradient PyHessian keeps.
    """
    # Not "import … as": the package hides this module behind a class of its name.
    package = import_module("pyhessian.hessian")
    model.set_attn_implementation("eager")
    samples = sum(len(batch["input_ids"]) for batch in batches)
    labels = sum(count_labels(batch) for batch in batches)

    def criterion(logits: Tensor, targets: Tensor) -> Tensor:
        summed = ForCausalLMLoss(logits, targets, logits.shape[-1], num_items_in_batch=labels)
        # A loader's batches are weighted by their rows: this makes the sum the mean over all tokens.
        return summed * (samples / len(targets))

    def record(eigenvalue: float) -> None:
        before = trace.products[-1]["estimate"] if trace.products else None
        trace.product(eigenvalue)
        if before is not None and abs(before - eigenvalue) / (abs(before) + 1e-6) < TOLERANCE:
            trace.stopped(before)  # which is what it returns

    # PyHessian reports nothing while it runs, so its two products are listened to.
    class Listening(package.hessian):
        def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
            trace.check()
            eigenvalue, image = super().dataloader_hv_product(v)
            record(eigenvalue)
            return eigenvalue, image

    kept = package.hessian_vector_product

    def listening_product(gradients: Any, parameters: Any, v: list[Tensor]) -> Any:
        trace.check()
        image = kept(gradients, parameters, v)
        record(float(sum((a * b).sum() for a, b in zip(image, v, strict=True))))
        return image

    package.hessian_vector_product = listening_product
    pairs = [(batch["input_ids"], batch["labels"]) for batch in batches]
    torch.manual_seed(seed)  # it draws its own start vector
    if loader:
        operator = Listening(Logits(model), criterion, dataloader=pairs, cuda=False)
    else:
        width = max(ids.shape[1] for ids, _ in pairs)
        ids = torch.cat([nn.functional.pad(i, (0, width - i.shape[1])) for i, _ in pairs])
        targets = torch.cat([nn.functional.pad(t, (0, width - t.shape[1]), value=IGNORED) for _, t in pairs])
        operator = Listening(Logits(model), criterion, data=(ids, targets), cuda=False)
    # At its own, tighter tolerance, so that the record goes on; where 5% would have stopped it is noted.
    values, _ = operator.eigenvalues(maxIter=trace.max_products)
    return float(values[0])
