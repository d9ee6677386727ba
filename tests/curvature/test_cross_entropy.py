"""The written-out cross-entropy against torch's own and against finite differences."""

from __future__ import annotations

import pytest
import torch
from tolerances import DENSE64
from torch.nn.functional import cross_entropy

import hessian_lr.curvature.cross_entropy as module
from hessian_lr.curvature.cross_entropy import summed_cross_entropy


def logits_and_targets(positions=7, vocabulary=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, vocabulary, (positions,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 25, 1 << 20], ids=["row by row", "two rows", "at once"])
def test_value_and_both_derivatives_match_torch(chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    logits, targets = logits_and_targets()
    direction = torch.randn(7, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for function in (summed_cross_entropy, lambda z, y: cross_entropy(z, y, reduction="sum")):
        loss = function(logits, targets)
        (gradient,) = torch.autograd.grad(5 * loss, logits, create_graph=True)
        (product,) = torch.autograd.grad(gradient, logits, direction)
        results.append((loss.detach(), gradient.detach(), product))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=DENSE64, atol=DENSE64)


def test_finite_differences_agree():
    logits, targets = logits_and_targets(4, 6)
    assert torch.autograd.gradcheck(lambda z: summed_cross_entropy(z, targets), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: summed_cross_entropy(z, targets), (logits,))


def test_a_confident_bfloat16_prediction_keeps_its_small_gradient():
    # p_y = 1 − 2e-4: rounding p_y itself to bfloat16 would make p_y − 1 zero.
    logits = torch.tensor([[9.0, 0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(summed_cross_entropy(logits, torch.tensor([0])), logits)
    exact = torch.softmax(torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64), 0)[0] - 1
    assert float(gradient[0, 0]) == pytest.approx(float(exact), rel=2**-8)


def test_no_position_gives_zero():
    assert float(summed_cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))) == 0.0
