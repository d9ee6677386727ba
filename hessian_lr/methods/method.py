"""What the registry knows about a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedModel

from ..setting import Setting
from .targets import Target


@dataclass(frozen=True)
class Method:
    """A way to parametrize and initialize a low-rank adapter.

    Attributes:
        name: What ``--method`` takes.
        summary: One line for ``hessian-lr list``.
        source: The paper, as an arXiv number.
        zero_b: The adapter is a product whose last factor (B; RandLoRA's λ) starts at zero. The
            Hessian at initialization is then a saddle with ±λ, all of it from the gradient.
        build: ``build(model, setting, targets)`` turns the model into a PEFT model. It is called with
            the random number generators already seeded, and after every refusal.
        refuse: ``refuse(setting, targets)`` raises RequestError for what this method alone cannot do.
    """

    name: str
    summary: str
    source: str
    zero_b: bool
    build: Callable[[PreTrainedModel, Setting, tuple[Target, ...]], PeftModel]
    refuse: Callable[[Setting, tuple[Target, ...]], None] | None = None
