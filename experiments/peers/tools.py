"""Who takes part, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hessian_lr.batches import Batch

from . import naive, with_curvlinops, with_eigenthings, with_ours, with_pyhessian
from .running import Trace

Measure = Callable[[nn.Module, Sequence[Batch], Trace, int], Any]


@dataclass(frozen=True)
class Tool:
    """One participant.

    Attributes:
        measure: Called with model, batches, trace and seed; returns λ.
        package: The distribution whose version is reported; None for code of this repository.
        start: Whether Lanczos or power iteration starts where ours does.
    """

    measure: Measure
    package: str | None
    start: bool


def registry(modules: int) -> dict[str, Tool]:
    """All tools by name; ``modules`` is how many single modules the per-module ones take."""
    ours, eigenthings, curvlinops = with_ours.joint, with_eigenthings.joint, with_curvlinops.joint
    bf16, f32 = torch.bfloat16, torch.float32
    own, other, third = "hessian-lr", "hessian-eigenthings", "curvlinops-for-pytorch"
    return {
        "truth": Tool(partial(ours, dtype=f32, rtol=naive.TRUTH_RTOL), own, True),
        "ours-bfloat16": Tool(partial(ours, dtype=bf16), own, True),
        "ours-float32": Tool(partial(ours, dtype=f32), own, True),
        "naive": Tool(naive.joint, None, True),
        "eigenthings": Tool(partial(eigenthings, weighted=False, method="autograd"), other, False),
        "eigenthings-weighted": Tool(partial(eigenthings, weighted=True, method="autograd"), other, False),
        "eigenthings-differences": Tool(
            partial(eigenthings, weighted=True, method="finite_difference"), other, False
        ),
        "pyhessian-batch": Tool(partial(with_pyhessian.joint, loader=False), "pyhessian", False),
        "pyhessian-loader": Tool(partial(with_pyhessian.joint, loader=True), "pyhessian", False),
        "curvlinops": Tool(partial(curvlinops, attention="sdpa", formula=False), third, True),
        "curvlinops-eager": Tool(partial(curvlinops, attention="eager", formula=False), third, True),
        "curvlinops-rewritten": Tool(partial(curvlinops, attention="eager", formula=True), third, True),
        "ours-modules": Tool(partial(with_ours.modules_together, modules=modules, dtype=bf16), own, True),
        "naive-modules": Tool(partial(naive.one_by_one, modules=modules), None, True),
    }
