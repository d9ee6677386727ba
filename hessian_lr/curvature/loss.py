"""The loss whose curvature is measured: token-exact, and blind to everything but labelled tokens.

L(θ) = (1 / P) · Σ −log p(label | context) over all P labelled positions of the *whole* sample, so
that a sample's λ does not depend on how it was split into batches. Only labelled positions reach
the output head, which for a small model costs as much as all its layers together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..distributed import team
from ..errors import NonFiniteError, RequestError
from .cross_entropy import summed_cross_entropy

Batch = Mapping[str, Tensor]
IGNORED = -100
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def count_labels(batch: Batch) -> int:
    """The number of positions in a batch whose next token is labelled (after the causal shift)."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def count_tokens(batches: Sequence[Batch]) -> int:
    """All tokens of some batches, padding included: what a forward pass is charged for."""
    return sum(int(batch["input_ids"].numel()) for batch in batches)


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

    def keep_labelled(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        # The head, and what comes before it, may lie on another device than the input.
        hidden = arguments[0]
        kept = hidden[rows.to(hidden.device), columns.to(hidden.device)]
        return (kept.unsqueeze(0), *arguments[1:])

    if head is None:
        return model(**inputs, use_cache=False).logits[rows, columns], targets
    hook = head.register_forward_pre_hook(keep_labelled)
    try:
        return model(**inputs, use_cache=False).logits.squeeze(0), targets
    finally:
        hook.remove()


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that maps hidden states to logits, or None where the model does not name one."""
    base = _base(model)
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return head if isinstance(head, nn.Module) else None


def mean_loss(model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype = torch.float32) -> float:
    """Token-weighted mean cross-entropy in nats over all labelled positions of ``batches``.

    The model is evaluated without dropout and without gradients and left as it was found. The
    result may be NaN or infinite: whether that is a failure is for the caller to say.

    Raises:
        RequestError: no position is labelled.
    """
    total = sum(count_labels(batch) for batch in batches)
    if not total:
        raise RequestError(
            "no token of these batches is labelled: the field 'labels' is -100 throughout their "
            f"{sum(len(batch['labels']) for batch in batches)} rows; label the tokens of the responses"
        )
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
        RequestError: there is none, they do not share one floating-point type, they are offloaded,
            accelerate has exchanged the model's forward or wrapped it for several devices, or the model is
            sharded and not measured by all that hold it (see ``distributed.across_ranks``).
    """
    own = vars(model).get("_original_forward")
    if (own is not None and model.forward != own) or isinstance(model, _PARALLEL):
        raise RequestError(
            "accelerate has wrapped this model (mixed precision, or several devices), and curvature needs it "
            "as it is: measure inside `with hessian_lr.integrations.unwrapped(model) as model:`"
        )
    _reshard(model)
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


def _reshard(model: nn.Module) -> None:
    """Undo that FSDP2 leaves weights gathered, deaf to a displacement, after a forward pass by itself."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def quiet_model(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, no gradient checkpointing), with each module's mode restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        _reshard(model)


@contextmanager
def differentiable_attention(model: nn.Module) -> Iterator[None]:
    """Attention that can be differentiated twice, for the time of the context.

    Fused kernels have no second derivative. Models on ``sdpa`` keep it with the MATH back-end;
    other implementations (flash, flex) give way to ``eager``.
    """
    base = _base(model)
    before = getattr(getattr(base, "config", None), "_attn_implementation", None)
    with ExitStack() as stack:
        if before == "sdpa":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        elif before not in (None, "eager"):
            base.set_attn_implementation("eager")
            stack.callback(base.set_attn_implementation, before)
        yield


@contextmanager
def compute_in(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products in ``dtype``: autocast for bfloat16, nothing for float32 and float64."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        yield


def _base(model: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    wrapper: Any = model
    return wrapper.get_base_model() if hasattr(model, "get_base_model") else model


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    return {name: value.to(device) for name, value in batch.items()}
