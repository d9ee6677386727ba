"""Where in a model the first NaN or infinity arises, looked for once a loss has turned out to be one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import Batch, to_device
from ..errors import NonFiniteError
from .loss import summed_loss
from .modes import compute_in, quiet_model


def nonfinite_loss(model: nn.Module, batch: Batch, dtype: torch.dtype, what: str) -> NonFiniteError:
    """The error for a loss that is NaN or infinite, with the first module where such a value appears.

    One more forward pass, without gradients, with a hook on every module. A module ends after those
    inside it, so the first to be seen is the innermost.

    Args:
        model: The model at the weights where the loss failed.
        batch: What it was evaluated on.
        dtype: Precision of its products then.
        what: What failed, such as "the loss at warm-up step 3".
    """
    first: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not first and not _finite(output):
                first.append(_told(name, module, inputs))

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        device = next(model.parameters()).device
        with quiet_model(model), torch.no_grad(), compute_in(device, dtype):
            summed_loss(model, to_device(batch, device))
    finally:
        for hook in hooks:
            hook.remove()
    where = first[0] if first else "every module's output is finite: look at the labels"
    return NonFiniteError(f"{what} is not finite; {where}")


def _told(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> str:
    """The module, and which of its inputs, its weights or its own arithmetic is to blame."""
    said = f"NaN or infinite values first appear in the output of {name} ({type(module).__name__})"
    bad = [own for own, p in module.named_parameters(recurse=False) if not bool(torch.isfinite(p).all())]
    if bad:
        return f"{said}, whose {bad[0]} holds such values: mend or fetch the weights again"
    if not _finite(inputs):
        return f"{said}, which was given such values"
    largest = max((float(t.abs().max()) for t in _tensors(inputs) if t.numel()), default=0.0)
    return (
        f"{said}, whose weights and inputs (up to {largest:.1e}) are finite: it overflows. Look for huge "
        "weights or a huge alpha, or use float32 products"
    )


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a module's inputs or outputs."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
