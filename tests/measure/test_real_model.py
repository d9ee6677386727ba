"""The pretrained model, once, at small size: λ against the closed form, and a prediction end to end."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tolerances import BFLOAT16, REAL_MODEL

import hessian_lr as hlr
from hessian_lr import data, models
from hessian_lr.curvature import closed_form
from hessian_lr.devices import resolve_dtype
from hessian_lr.prepare import prepare
from hessian_lr.setting import Setting

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def loaded():
    return models.load("smollm2-135m", device="cpu", quiet=True)


@pytest.fixture(scope="module")
def rows(loaded):
    """The shortest of the task's rows: what is compared holds for any, and a product costs a third."""
    task = data.load("math", loaded.tokenizer)
    shortest = sorted(task.train, key=lambda row: len(row.input_ids))[:64]
    return dataclasses.replace(task, train=tuple(shortest))


def test_plain_loras_lambda_lies_in_the_closed_form_bracket(loaded, rows):
    ready = prepare(Setting(samples=1), loaded, rows)
    found = hlr.sharpness(ready.model, ready.batches, dtype=torch.float32, rtol=0.02)
    bracket = closed_form(ready.model, ready.batches)
    assert found.status == "converged"
    assert bracket.lower * (1 - REAL_MODEL) <= found.lambda_max <= bracket.upper * (1 + REAL_MODEL)


def test_a_prediction_is_in_the_range_where_fine_tuning_works(loaded, rows):
    ready = prepare(Setting(method="rslora", samples=1, batch_size=1), loaded, rows)
    before = [p.detach().clone() for p in ready.model.parameters()]
    found = hlr.predict_learning_rate(
        ready.model, ready.batches, warmup_batches=ready.warmup_batches, dtype=ready.dtype
    )
    assert found.status in ("converged", "budget")
    # Three decades around the learning rates that LoRA runs of such a model are given.
    assert 1e-5 < found.lr_low < found.lr < found.lr_high < 1e-1
    assert all(torch.equal(a, b) for a, b in zip(before, ready.model.parameters(), strict=True))


@pytest.mark.skipif(
    resolve_dtype("auto", torch.device("cpu")) is not torch.bfloat16,
    reason="this processor has no instructions for bfloat16: it takes over 15 minutes",
)
def test_bfloat16_and_float32_agree_on_lambda(loaded, rows):
    ready = prepare(Setting(method="olora", samples=1), loaded, rows)
    exact, rough = (
        hlr.sharpness(ready.model, ready.batches, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    allowed = exact.residual + rough.residual + BFLOAT16 * exact.lambda_max
    assert abs(exact.lambda_max - rough.lambda_max) <= allowed
    assert exact.parameters == rough.parameters
