"""The model inside what accelerate makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import extract_model_from_parallel  # type: ignore[import-untyped]
from torch import nn


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[Any]:
    """The model itself, with its own forward, for the time of the context.

    ``Accelerator.prepare`` wraps a model for several devices, compiles it, and with mixed precision
    exchanges its ``forward`` for one under autocast. Curvature needs the model as it is: its products
    choose their precision themselves, and compiled or distributed forwards cannot be differentiated
    twice. What ``prepare`` did is back afterwards. A model that it never saw is given as it is.
    """
    inner: Any = extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False)
    own = inner.__dict__.get("_original_forward")
    if own is None:
        yield inner
        return
    wrapped = inner.__dict__["forward"]
    inner.forward = own
    try:
        yield inner
    finally:
        inner.forward = wrapped
