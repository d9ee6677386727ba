"""A CUDA device gives what the CPU gives, and keeps what it works on; skipped where there is none."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import tiny_sweep as tiny
import torch
from tiny_blocks import TIGHT
from tiny_models import ARCHITECTURES, adapted, counting_batch, learned
from tolerances import (
    BFLOAT16,
    CENTRAL_LAMBDA_P,
    DENSE32,
    DENSE64,
    DENSE64_FLOAT32_ISLANDS,
    SAME_LAMBDA,
    SAME_LOGITS,
    SAME_WEIGHTS,
)

import hessian_lr as hlr
from hessian_lr import methods
from hessian_lr.curvature import HessianOperator, closed_form
from hessian_lr.errors import HessianLRError
from hessian_lr.methods import METHODS
from hessian_lr.sweep import train_once

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def learnable(count):
    """Batches of a task that the tiny model has not learned: counting by three."""
    return [counting_batch(8, 3, index) for index in range(count)]


def vector(size, seed=0):
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn / drawn.norm()).cuda()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("budget", [None, 0], ids=["kept", "rebuilt"])
def test_products_are_the_cpus_and_stay_there(architecture, budget, batches):
    here = HessianOperator(adapted(architecture).cuda(), batches, memory_budget=budget)
    there = HessianOperator(adapted(architecture), batches)
    allowed = DENSE64 if architecture == "gpt2" else DENSE64_FLOAT32_ISLANDS
    for seed in range(3):
        v = vector(here.size, seed)
        image, truth = here.matvec(v), there.matvec(v.cpu())
        assert image.device.type == "cuda"
        assert float((image.cpu() - truth).norm() / truth.norm()) < allowed
    assert here.kept == (0 if budget == 0 else len(here.batches))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("operator", ["hessian", "gauss-newton", "central-differences"])
def test_lambda_is_the_cpus(architecture, operator, batches):
    here, there = (
        hlr.sharpness(model, batches, operator=operator, max_products=200)
        for model in (adapted(architecture, torch.float32).cuda(), adapted(architecture, torch.float32))
    )
    assert here.status == there.status == "converged"
    tolerance = CENTRAL_LAMBDA_P if operator == "central-differences" else DENSE32
    assert here.lambda_max == pytest.approx(there.lambda_max, rel=tolerance)
    assert here.sampling_error == pytest.approx(there.sampling_error, rel=CENTRAL_LAMBDA_P)


def test_bfloat16_finds_the_same_lambda(batches):
    exact, rough = (
        hlr.sharpness(adapted("llama", torch.float32).cuda(), batches, dtype=dtype, max_products=200)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.rounding is not None
    allowed = exact.residual + rough.residual + BFLOAT16 * exact.lambda_max
    assert abs(exact.lambda_max - rough.lambda_max) <= allowed


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_modules_lambda_is_the_cpus(architecture, batches):
    here, there = (
        hlr.module_sharpness(model, batches, **TIGHT)
        for model in (adapted(architecture).cuda(), adapted(architecture))
    )
    tolerance = SAME_LAMBDA if architecture == "gpt2" else DENSE64_FLOAT32_ISLANDS
    assert [m.name for m in here.modules] == [m.name for m in there.modules]
    largest = max(m.lambda_max for m in there.modules)
    for one, other in zip(here.modules, there.modules, strict=True):
        assert abs(one.lambda_max - other.lambda_max) <= tolerance * largest


def test_the_closed_form_is_the_cpus():
    here, there = (closed_form(model, learnable(2)) for model in (learned().cuda(), learned()))
    assert here.lower == pytest.approx(there.lower, rel=DENSE32)
    assert here.upper == pytest.approx(there.upper, rel=DENSE32)


@pytest.mark.parametrize("predictor", ["combined", "adam", "eigenvalue"])
def test_a_prediction_is_the_cpus_and_leaves_no_trace(predictor):
    model = learned().cuda()
    before = [p.detach().clone() for p in model.parameters()]
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    here = hlr.predict_learning_rate(model, learnable(12), predictor=predictor)
    there = hlr.predict_learning_rate(learned(), learnable(12), predictor=predictor)
    assert here.status == there.status == "converged"
    assert here.lr == pytest.approx(there.lr, rel=CENTRAL_LAMBDA_P)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), states[0]) and torch.equal(
        torch.cuda.get_rng_state(), states[1]
    )


def test_the_same_call_gives_the_same_bits(batches):
    first, second = (
        hlr.sharpness(adapted("llama", torch.float32).cuda(), batches, max_products=50) for _ in range(2)
    )
    assert first.lambda_max == second.lambda_max and first.residual == second.residual


def test_lambda_is_tracked_on_either_device(batches):
    def last(device):
        model = adapted("llama", torch.float32).to(device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        model(**{name: value.to(device) for name, value in batches[0].items()}).loss.backward()
        optimizer.step()
        tracker = hlr.SharpnessTracker(batches)
        return [tracker.update(model, step, optimizer) for step in range(3)][-1]

    here, there = last("cuda"), last("cpu")
    assert here.lambda_max == pytest.approx(there.lambda_max, rel=CENTRAL_LAMBDA_P)
    assert here.lambda_preconditioned == pytest.approx(there.lambda_preconditioned, rel=CENTRAL_LAMBDA_P)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_built_there_and_trains_as_on_the_cpu(method):
    """Two steps, so that Adam's division has not yet made much of another order of sums."""
    loaded, data = tiny.tiny_model(), tiny.tiny_data()
    there = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model).cuda())
    setting = dataclasses.replace(tiny.SETTING, method=method, steps=2)
    runs = [train_once(setting, 0.01, one, data) for one in (there, loaded)]
    assert runs[0].initial_loss == pytest.approx(runs[1].initial_loss, rel=DENSE32)
    assert runs[0].final_loss == pytest.approx(runs[1].final_loss, rel=SAME_WEIGHTS)
    assert next(there.model.parameters()).device.type == "cuda"


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("lora-ga", "lora-ga-peft")])
def test_a_methods_start_does_not_depend_on_the_device(method):
    loaded = tiny.tiny_model()
    setting = dataclasses.replace(tiny.SETTING, method=method)
    ids = torch.arange(1, 12).unsqueeze(0)
    here, there = (
        methods.build(copy.deepcopy(loaded.model).to(device), setting)(input_ids=ids.to(device)).logits.cpu()
        for device in ("cuda", "cpu")
    )
    assert float((here - there).norm() / there.norm()) < 10 * SAME_LOGITS


def test_what_does_not_fit_says_what_would():
    operator = HessianOperator(adapted("llama", torch.float32).cuda(), [counting_batch(4096, 3, 0)] * 8)
    allowed = torch.cuda.memory_reserved() + 2**25
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(HessianLRError, match=r"out of memory on cuda.*--max-length"):
            operator.matvec(vector(operator.size).float())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
