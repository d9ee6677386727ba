"""Have a model's own code build graphs that are cheap to differentiate twice.

While the context is entered, calls of ``torch.nn.functional`` that a model makes are answered by the
written-out derivatives of this package: attention, frozen linear layers, activations. The model is not
touched, nothing is patched: torch's own function mode does it, for this thread and this block only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from . import layers
from .attention import Block, attention, causal_blocks, masked_blocks


class TwiceDifferentiable(TorchFunctionMode):
    """The context, for one forward pass at a time.

    Args:
        dtype: Precision of the matrix products: bfloat16 (with autocast around this), or whatever
            type the tensors have.
        weights: Frozen weights in ``dtype`` by the identity of the originals; filled here, so that
            all microbatches of an operator share one copy.
    """

    def __init__(self, dtype: torch.dtype, weights: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._bfloat16 = dtype is torch.bfloat16
        self._weights = weights
        # Casts made in this pass, by the identity of their source, which is kept alive with them.
        self._narrow: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[Any, ...], tuple[Tensor | None, tuple[Block, ...]]] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer a call, or pass it on."""
        keywords = dict(kwargs or {})
        answer = _ANSWERS.get(function)
        if answer is not None and torch.is_grad_enabled():
            result = answer(self, *args, **keywords)
            if result is not None:
                return result
        return function(*args, **keywords)

    def _cast(self, tensor: Tensor) -> Tensor:
        """The tensor as autocast would give it to a matrix product, cast once for all its users."""
        if not self._bfloat16 or tensor.dtype is not torch.float32:
            return tensor
        found = self._narrow.get(id(tensor))
        if found is None or found[0] is not tensor:
            found = self._narrow[id(tensor)] = (tensor, tensor.to(torch.bfloat16))
        return found[1]

    def _cast_weight(self, weight: Tensor) -> Tensor:
        if not self._bfloat16 or weight.dtype is not torch.float32:
            return weight
        if not isinstance(weight, nn.Parameter):
            # Made in this pass, as a part of a parameter is: another pass makes another one.
            return weight.detach().to(torch.bfloat16)
        found = self._weights.get(id(weight))
        if found is None or found[0] is not weight:
            found = self._weights[id(weight)] = (weight, weight.detach().to(torch.bfloat16))
        return found[1]

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        if weight.dim() != 2 or not input.is_floating_point():
            return None
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return functional.linear(self._cast(input), weight, bias)
        narrow = self._cast(input)
        cast = self._cast_weight(weight)
        if narrow.dtype is not cast.dtype:
            return None
        return layers.frozen_linear(narrow, cast, None if bias is None else bias.to(cast.dtype))

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        # PEFT lifts an adapter's input from bfloat16 to float32, and autocast brings it down again:
        # remember where it came from.
        if not (self._bfloat16 and tensor.dtype is torch.bfloat16 and (args, kwargs) in _TO_FLOAT32):
            return None
        wide = Tensor.to(tensor, torch.float32)
        self._narrow[id(wide)] = (wide, tensor)
        return wide

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor | None:
        learned_mask = attn_mask is not None and attn_mask.requires_grad
        grouped = query.dim() == 4 and (enable_gqa or key.shape[1] == query.shape[1])
        if dropout_p or learned_mask or not grouped:
            return None
        if self._bfloat16:
            query, key, value = (t.to(torch.bfloat16) for t in (query, key, value))
        keys = key.shape[-2]
        about = (id(attn_mask), query.device, is_causal, query.shape, key.shape[1], keys)
        found = self._masks.get(about)
        if found is None:
            blocks = (
                causal_blocks(query, keys)
                if is_causal
                else masked_blocks(query, keys, attn_mask, key.shape[1])
            )
            found = self._masks[about] = (attn_mask, blocks)
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        return attention(query, key, value, found[1], scale)

    def _silu(self, input: Tensor, inplace: bool = False) -> Tensor | None:
        return None if inplace else layers.activation(input, layers.silu)

    def _gelu(self, input: Tensor, approximate: str = "none") -> Tensor:
        return layers.activation(input, layers.gelu_tanh if approximate == "tanh" else layers.gelu)


_TO_FLOAT32: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((torch.float32,), {}),
    ((), {"dtype": torch.float32}),
)
_ANSWERS: dict[Any, Callable[..., Any]] = {
    functional.linear: TwiceDifferentiable._linear,
    functional.scaled_dot_product_attention: TwiceDifferentiable._attention,
    functional.silu: TwiceDifferentiable._silu,
    functional.gelu: TwiceDifferentiable._gelu,
    Tensor.to: TwiceDifferentiable._to,
}
