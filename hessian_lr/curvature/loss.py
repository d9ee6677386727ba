"""The loss whose curvature is measured: token-exact, and blind to everything but labelled tokens.

L(θ) = (1 / P) · Σ −log p(label | context) over all P labelled positions of the *whole* sample, so
that a sample's λ does not depend on how it was split into batches. Only labelled positions reach
the output head, which for a small model costs as much as all its layers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import IGNORED, Batch, count_labels, require_labels, to_device
from ..errors import NonFiniteError, RequestError
from .cross_entropy import summed_cross_entropy
from .modes import base_model, compute_in, quiet_model, reshard


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters θ over which curvature is taken: those that require a gradient, in model order.

    Raises:
        RequestError: there is none.
    """
    reshard(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise RequestError("the model has no trainable parameter: wrap it with a PEFT adapter first")
    return parameters


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy summed over the batch's labelled positions, a scalar with its graph.

    Args:
        model: A causal language model of transformers, with or without a PEFT adapter.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each (samples, tokens), on the
            model's device; label -100 marks a token that is not scored.
    """
    return summed_cross_entropy(*labelled_logits(model, batch))


def labelled_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits that are scored, (positions, vocabulary), and their targets, (positions,)."""
    labels = batch["labels"][:, 1:]
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    targets = labels[rows, columns]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    head = output_head(model)

    def labelled(every: Tensor) -> Tensor:
        # The head, and what comes before it, may lie on another device than the input.
        return every[rows.to(every.device), columns.to(every.device)]

    def keep_labelled(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (labelled(arguments[0]).unsqueeze(0), *arguments[1:])

    if head is None:
        return _scored(labelled(_logits(model, inputs)), targets)
    hook = head.register_forward_pre_hook(keep_labelled)
    try:
        return _scored(_logits(model, inputs).squeeze(0), targets)
    finally:
        hook.remove()


def _scored(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    words = logits.shape[-1]
    if len(targets) and (most := int(targets.max())) >= words:
        raise RequestError(
            f"{most} is no label of a model with {words} tokens: {IGNORED} marks those that are not scored"
        )
    return logits, targets


def _logits(model: nn.Module, inputs: Batch) -> Tensor:
    output = model(**inputs, use_cache=False)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise RequestError(
            f"{type(base_model(model)).__name__} gives a {type(output).__name__} without logits, and "
            "curvature is that of a causal language model's loss: load it with AutoModelForCausalLM"
        )
    return logits


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that maps hidden states to logits, or None where the model does not name one."""
    base = base_model(model)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return head if isinstance(head, nn.Module) else None


def mean_loss(model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype = torch.float32) -> float:
    """Token-weighted mean cross-entropy in nats over all labelled positions of ``batches``.

    The model is evaluated without dropout and without gradients and left as it was found. The
    result may be NaN or infinite: whether that is a failure is for the caller to say.

    Raises:
        RequestError: no position is labelled.
    """
    total = require_labels(batches)
    device = next(model.parameters()).device
    with quiet_model(model), torch.no_grad(), compute_in(device, dtype):
        summed = [
            float(summed_loss(model, to_device(batch, device))) for batch in batches if count_labels(batch)
        ]
    return sum(summed) / total


def require_finite(value: Tensor | float, what: str) -> None:
    """Raise NonFiniteError, naming ``what``, if a NaN or an infinity stands in ``value``."""
    if not bool(torch.isfinite(torch.as_tensor(value)).all()):
        raise NonFiniteError(
            f"{what} is not finite. Look for NaN or huge values in the model's weights, or use float32."
        )
