"""The state a model is in while it is measured: its modes, its attention, its precision."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel

from .four_bits import is_four_bit

# The names of fused attention in transformers; one with a slash is a kernel of the hub's.
_FUSED = re.compile(r"^flash_attention_\d+$|^flex_attention$|^paged\||/")


@contextmanager
def quiet_model(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, no gradient checkpointing), with each module's mode restored.

    What is compiled runs as it was before: compiled code has no second derivative.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in modes:
        # In evaluation bitsandbytes may lay a weight out anew, for products that have no gradient.
        module.training = is_four_bit(module)
    compiled = any(_is_compiled(module) for module, _ in modes)
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        reshard(model)


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is torch.compile()'s, by module, in place (``module.compile()``) or by its forward alone."""
    by_forward = hasattr(module.forward, "_torchdynamo_orig_callable")
    return by_forward or "_orig_mod" in module._modules or module._compiled_call_impl is not None


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Within ``quiet_model``: gradient checkpointing as in training, if the model has it, but no dropout."""
    zeroed: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) is True:
            # Its own training flag is what checkpointing asks; its children's, for dropout, stay off.
            module.training = True
            # What a layer drops by itself, without a child for it, as OPT's do.
            zeroed += [
                (module, name, value)
                for name, value in vars(module).items()
                if "drop" in name and isinstance(value, float)
            ]
    for module, name, _ in zeroed:
        setattr(module, name, 0.0)
    try:
        # A dropout of nothing draws all the same.
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        for module, name, value in zeroed:
            setattr(module, name, value)


@contextmanager
def unwrapped_checkpoints(model: nn.Module) -> Iterator[None]:
    """What torch's ``checkpoint_wrapper`` holds, called as it is: evaluation mode alone leaves it on."""
    wrappers = [module for module in model.modules() if isinstance(module, CheckpointWrapper)]
    before = [wrapper.checkpoint_fn for wrapper in wrappers]
    try:
        for wrapper in wrappers:
            wrapper.checkpoint_fn = partial(_called)
        yield
    finally:
        for wrapper, function in zip(wrappers, before, strict=True):
            wrapper.checkpoint_fn = function


def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


@contextmanager
def without_steps(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No hooks on accumulated gradients: some have an optimizer step there, in the backward pass."""
    hooks = [parameter._post_accumulate_grad_hooks or {} for parameter in parameters]
    before = [dict(of_one) for of_one in hooks]
    for of_one in hooks:
        of_one.clear()  # torch itself goes on with the same dictionary, whatever the parameter then has
    try:
        yield
    finally:
        for of_one, kept in zip(hooks, before, strict=True):
            of_one.update(kept)


@contextmanager
def differentiable_attention(model: nn.Module) -> Iterator[None]:
    """Attention that can be differentiated twice, for the time of the context.

    Fused kernels have no second derivative. Models on ``sdpa`` keep it with the MATH back-end; fused ones of
    a name of their own give way to ``eager``. Anything else, such as a registered one, is the model's own
    and stays: ``require_twice`` looks at its graph.
    """
    base = base_model(model)
    before = getattr(getattr(base, "config", None), "_attn_implementation", None)
    with ExitStack() as stack:
        if before == "sdpa":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        elif before and _FUSED.search(before):
            base.set_attn_implementation("eager")
            stack.callback(base.set_attn_implementation, before)
        yield


@contextmanager
def compute_in(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products in ``dtype``: autocast for bfloat16, nothing for float32 and float64."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        yield


def base_model(model: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper and torch.compile()'s, or the model itself."""
    wrapper: Any = model
    base = wrapper.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, "_orig_mod", base)


def reshard(model: nn.Module) -> None:
    """Undo that FSDP2 leaves weights gathered, deaf to a displacement, after a forward pass by itself."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
