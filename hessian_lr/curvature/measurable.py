"""Models whose loss has no curvature to be measured, refused before any work."""

from __future__ import annotations

import torch
from peft import PeftType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..distributed import team
from ..errors import RequestError
from .loss import trainable
from .modes import base_model

# As transformers names its classes; their labels are not shifted, or none of a token's.
_OTHER_HEADS = (
    *("ForTokenClassification", "ForSequenceClassification", "ForQuestionAnswering"),
    *("ForMultipleChoice", "ForMaskedLM"),
)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def require_measurable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters θ of a model whose curvature can be measured, as ``trainable`` has them.

    Once an operator, warm-up or search: it goes through all modules several times.

    Raises:
        RequestError: inference mode is on; there is no θ, or not of one floating-point type, or it is
            offloaded; accelerate has exchanged the model's forward or wrapped it for several devices; the
            model is sharded and not measured by all that hold it (see ``distributed.across_ranks``); or it is
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
    inner = getattr(model, "_orig_mod", model)  # torch.compile() may have come last
    own = vars(inner).get("_original_forward")
    if (own is not None and inner.forward != own) or isinstance(inner, _PARALLEL):
        raise RequestError(
            "accelerate has wrapped this model (mixed precision, or several devices), and curvature needs it "
            "as it is: measure inside `with hessian_lr.integrations.unwrapped(model) as model:`"
        )
    parameters = trainable(model)
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
