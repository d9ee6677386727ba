"""Cross-entropy whose first and second derivatives are written out.

For one position with logits z, p = softmax(z) and target y: loss = logsumexp(z) − z_y, gradient
p − e_y, and second derivative times u = p∘u − p·(p·u). Automatic differentiation of log-softmax
gets there through half a dozen buffers of the vocabulary's size; here none outlives a chunk of
rows, except what the output head itself must be given, and the logits of labelled positions that a graph
keeps: for two rows of SmolLM2-135M (389 positions) 76 MB of the 5.4 GB that it takes in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..precision import wide

# Elements of a float32 buffer worked on at a time: large enough to amortise the calls, small
# enough to stay near the processor's cache.
_CHUNK_ELEMENTS = 1 << 18


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log softmax(z)_y over positions, differentiable twice.

    Args:
        logits: z, shape (positions, vocabulary). Lower precisions are summed in float32.
        targets: y, shape (positions,), int64.

    Returns:
        A scalar in float32, or float64 for float64 logits.
    """
    loss: Tensor = _SummedCrossEntropy.apply(logits, targets, logsumexp(logits))
    return loss


@torch.no_grad()
def logsumexp(logits: Tensor) -> Tensor:
    """log Σ exp(z) of each position, shape (positions,), in float32, or float64 for float64 logits."""
    of_rows = [torch.logsumexp(wide(logits[rows]), dim=-1) for rows in _chunks(logits)]
    return torch.cat(of_rows or [wide(logits).new_zeros(0)])


def bent(logits: Tensor, normalizers: Tensor, tangent: Tensor) -> Tensor:
    """The summed loss's second derivative times u = ``tangent``, p∘u − p·(p·u), shaped as the logits.

    Args:
        logits: z, shape (positions, vocabulary).
        normalizers: Their ``logsumexp``.
        tangent: u, of the same shape.
    """
    product = torch.empty_like(logits)
    for rows in _chunks(logits):
        probabilities = _probabilities(logits[rows], normalizers[rows])
        scaled = probabilities * tangent[rows]
        product[rows] = scaled.addcmul_(probabilities, scaled.sum(-1, keepdim=True), value=-1)
    return product


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, normalizers: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets, normalizers)
        picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return (normalizers - wide(picked)).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, normalizers = ctx.saved_tensors
        gap: Tensor = _ProbabilityGap.apply(logits, targets, normalizers)
        return gap * gradient.to(logits.dtype), None, None


class _ProbabilityGap(torch.autograd.Function):
    """p − e_y, shape (positions, vocabulary)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, normalizers: Tensor) -> Tensor:
        ctx.save_for_backward(logits, normalizers)
        gap = torch.empty_like(logits)
        for rows in _chunks(logits):
            gap[rows] = _probabilities(logits[rows], normalizers[rows])
        # In the wide type first: p_y − 1 of a confident prediction would vanish in bfloat16.
        picked = logits.gather(-1, targets.unsqueeze(-1))
        gap.scatter_(
            -1, targets.unsqueeze(-1), torch.expm1(wide(picked) - normalizers.unsqueeze(-1)).to(gap.dtype)
        )
        return gap

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> tuple[Tensor, None, None]:
        logits, normalizers = ctx.saved_tensors
        return bent(logits, normalizers, tangent), None, None


def _probabilities(logits: Tensor, normalizers: Tensor) -> Tensor:
    return (wide(logits) - normalizers.unsqueeze(-1)).exp_()


def _chunks(logits: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    for start in range(0, len(logits), step):
        yield slice(start, start + step)
