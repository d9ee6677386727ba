"""What the registry knows about a method, and what a method adapts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peft import PeftModel
from torch.optim import Optimizer

from ..setting import Setting


@dataclass(frozen=True)
class Target:
    """A linear module, or a parameter that holds the weights of many, that gets an adapter.

    Attributes:
        name: Its full name in the model, ``model.layers.0.self_attn.q_proj``.
        in_features: d_in, the width of its input.
        out_features: d_out, the width of its output.
        transposed: Its weight is stored as (d_in, d_out): transformers' ``Conv1D`` of GPT-2.
        fused: It is a parameter, all experts of a mixture in one, or the router to them. The features
            are those of one expert.
    """

    name: str
    in_features: int
    out_features: int
    transposed: bool
    fused: bool = False

    @property
    def width(self) -> int:
        """min(d_in, d_out), the largest rank its weight can have."""
        return min(self.in_features, self.out_features)


@dataclass(frozen=True)
class Method:
    """A way to parametrize and initialize a low-rank adapter.

    Attributes:
        name: What ``--method`` takes.
        summary: One line for ``hessian-lr list``.
        source: The paper, as an arXiv number.
        zero_b: The adapter is a product whose last factor (B; RandLoRA's λ) starts at zero. The
            Hessian at initialization is then a saddle with ±λ, all of it from the gradient.
        build: ``build(model, setting, targets)`` turns the model into a PEFT model, and takes
            ``batches`` too where ``rows`` asks for them. It is called with the random number generators
            already seeded, and after every refusal.
        refuse: ``refuse(setting, targets)`` raises RequestError for what this method alone cannot do.
        rows: Rows of training data that the initialization looks at; 0: the weights are enough.
        optimizer: ``optimizer(model, lr, betas=…, eps=…)`` makes the optimizer of a run whose learning rate
            is ``lr``; None: AdamW.
        fused: It can adapt parameters that hold many experts, as PEFT's plain LoRA can.
        clips: ``optimizer`` takes ``max_norm`` too, and clips gradients to it in a way of its own.
    """

    name: str
    summary: str
    source: str
    zero_b: bool
    build: Callable[..., PeftModel]
    refuse: Callable[[Setting, tuple[Target, ...]], None] | None = None
    rows: int = 0
    optimizer: Callable[..., Optimizer] | None = None
    fused: bool = False
    clips: bool = False
