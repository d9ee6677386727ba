"""The loss whose curvature is measured: token-exact, and blind to everything but labelled tokens.

L(θ) = (1 / P) · Σ −log p(label | context) over all P labelled positions of the *whole* sample, so
that a sample's λ does not depend on how it was split into batches. Only labelled positions reach
the output head, which for a small model costs as much as all its layers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..distributed import team
from ..errors import NonFiniteError, RequestError
from .batches import IGNORED, Batch, count_labels, require_labels, to_device
from .cross_entropy import summed_cross_entropy
from .modes import base_model, compute_in, quiet_model, reshard

# As transformers names its classes; their labels are not shifted, or none of a token's.
_OTHER_HEADS = (
    *("ForTokenClassification", "ForSequenceClassification", "ForQuestionAnswering"),
    *("ForMultipleChoice", "ForMaskedLM"),
)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


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


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters θ over which curvature is taken: those that require a gradient, in model order.

    Raises:
        RequestError: inference mode is on; there is none, they do not share one floating-point type, they
            are offloaded, accelerate has exchanged the model's forward or wrapped it for several devices, the
            model is sharded and not measured by all that hold it (see ``distributed.across_ranks``), or it is
            no causal language model.
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"the model must be a torch module with an adapter, not {type(model).__name__}")
    if torch.is_inference_mode_enabled():
        raise RequestError("curvature needs gradients: call it outside torch.inference_mode()")
    if (kind := type(base_model(model)).__name__).endswith(_OTHER_HEADS):
        raise RequestError(
            f"{kind} does not predict the next token, and curvature is that of a causal language model's "
            "loss: load it with AutoModelForCausalLM"
        )
    if getattr(getattr(base_model(model), "config", None), "is_encoder_decoder", False):
        raise RequestError(
            "this model has an encoder and a decoder, whose labels are not shifted; curvature is that of a "
            "causal language model's loss"
        )
    prompt = getattr(model, "active_peft_config", None)
    if prompt is not None and prompt.is_prompt_learning and prompt.peft_type != PeftType.PREFIX_TUNING:
        raise RequestError(
            f"{prompt.peft_type.value} puts tokens of its own before each row, and the labels move with "
            "them; measure an adapter inside the layers, such as LoRA's"
        )
    own = vars(model).get("_original_forward")
    if (own is not None and model.forward != own) or isinstance(model, _PARALLEL):
        raise RequestError(
            "accelerate has wrapped this model (mixed precision, or several devices), and curvature needs it "
            "as it is: measure inside `with hessian_lr.integrations.unwrapped(model) as model:`"
        )
    reshard(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise RequestError("the model has no trainable parameter: wrap it with a PEFT adapter first")
    sharded = is_sharded(model)
    if team().sharded != sharded:
        raise RequestError(
            "the model is sharded over processes (FSDP2): measure on all of them, each with the same whole "
            "sample, inside `with hessian_lr.distributed.across_ranks(sharded=True):`"
            if sharded
            else "across_ranks(sharded=True) is for a model that fully_shard() has sharded; this one is whole"
        )
    pieces = next((p.device_mesh.size() for p in model.parameters() if isinstance(p, DTensor)), None)
    if sharded and pieces not in (None, team().size):
        raise RequestError(
            f"the model is sharded over {pieces} processes, and across_ranks() joins {team().size}: give it "
            "the group of all that hold a piece"
        )
    if any(p.is_meta for p in parameters):
        raise RequestError(
            "some trainable parameters are offloaded (to the CPU or a disk) and so cannot be moved: add "
            "the adapter before accelerate's dispatch_model(), then call "
            "accelerate.hooks.remove_hook_from_module() on each module that holds trainable parameters"
        )
    if len(kinds := sorted({str(p.dtype) for p in parameters})) > 1:
        raise RequestError(
            f"the trainable parameters must share one floating-point type, not {', '.join(kinds)}: make the "
            "adapter float32 (PEFT does unless autocast_adapter_dtype=False)"
        )
    return parameters


def is_sharded(model: nn.Module) -> bool:
    """Whether the model (by FSDP2's ``fully_shard``) or its adapter lies in pieces on several processes."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters() if parameter.requires_grad
    )
