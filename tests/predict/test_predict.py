"""Predictions: what they must not change, how they must follow a reparametrisation, and when they refuse."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny_models import counting_batch, learnable, learned
from tolerances import FAST_RATE

import hessian_lr as hlr
from hessian_lr.curvature import mean_loss
from hessian_lr.curvature.closed_form import FAST_PRODUCTS
from hessian_lr.curvature.loss import trainable
from hessian_lr.errors import RequestError
from hessian_lr.measure.preconditioned import AdamSharpness
from hessian_lr.predict import load_calibration
from hessian_lr.predict.law import EXTRAPOLATION, PowerLaw


@pytest.mark.parametrize("predictor", ["adam", "eigenvalue"])
def test_a_prediction_has_a_range_and_a_cost_and_leaves_no_trace(predictor):
    model = learned()
    model.train()
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    found = hlr.predict_learning_rate(model, learnable(12), predictor=predictor)
    assert found.status == "converged"
    assert 0 < found.lr_low < found.lr < found.lr_high < math.inf
    assert found.matvecs > 0
    assert found.gradient_equivalents > found.matvecs
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert hlr.Prediction.from_dict(found.to_dict()) == found
    assert not any("samples" in note for note in found.notes)


def test_steps_that_nobody_gave_are_told():
    asked = {"predictor": "eigenvalue", "fast": True}
    found = hlr.predict_learning_rate(learned(), learnable(12), **asked)
    given = hlr.predict_learning_rate(learned(), learnable(12), **asked, steps=60)
    longer = hlr.predict_learning_rate(learned(), learnable(12), **asked, steps=300)
    assert found.lr == given.lr > longer.lr
    assert [note for note in found.notes if note not in given.notes] == [
        "predicted for a run of 60 steps, as none were given: give those of yours, steps=…"
    ]


def test_a_prediction_from_two_rows_says_that_these_are_few():
    found = hlr.predict_learning_rate(
        learned(),
        [counting_batch(2, 3, 0)],
        warmup_batches=learnable(2),
        predictor="eigenvalue",
        batch_size=4,
    )
    assert any("samples 2 (tried on 4 … 32)" in note for note in found.notes)


def test_rows_padded_to_a_fixed_length_cost_and_predict_what_they_do_without():
    rows = learnable(8)
    wide = [
        {
            name: torch.nn.functional.pad(value, (0, 20), value=-100 if name == "labels" else 0)
            for name, value in row.items()
        }
        for row in rows
    ]
    plain, padded = (hlr.predict_learning_rate(learned(), some) for some in (rows, wide))
    assert padded.lr == plain.lr
    assert padded.gradient_equivalents == plain.gradient_equivalents


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_fast_predicts_what_lanczos_predicts_for_less(method):
    slow, fast = (
        hlr.predict_learning_rate(learned(method=method), learnable(12), predictor="eigenvalue", fast=quick)
        for quick in (False, True)
    )
    # λ to 10% on one side and 5% on the other, and an exponent of about -0.4.
    assert fast.lr == pytest.approx(slow.lr, rel=FAST_RATE)
    assert fast.curvature.lambda_lower <= slow.curvature.lambda_upper
    assert slow.curvature.lambda_lower <= fast.curvature.lambda_upper
    met = fast.curvature.lambda_upper <= 1.1 * fast.curvature.lambda_max
    assert fast.status == fast.curvature.status == ("converged" if met else "budget")
    assert met or any("lies between" in note for note in fast.notes)
    assert fast.matvecs <= FAST_PRODUCTS
    assert fast.gradient_equivalents < slow.gradient_equivalents
    assert fast.curvature.sampling_error is None
    assert fast.curvature.parameters == slow.curvature.parameters
    assert fast.curvature.loss == pytest.approx(slow.curvature.loss)
    assert "closed form" in fast.notes[0]


def test_fast_is_refused_where_there_is_no_closed_form():
    with pytest.raises(RequestError, match="fast is for the predictor 'eigenvalue'"):
        hlr.predict_learning_rate(learned(), learnable(12), fast=True)
    with pytest.raises(RequestError, match="B = 0"):
        hlr.predict_learning_rate(learned(method="pissa"), learnable(12), predictor="eigenvalue", fast=True)
    with pytest.raises(RequestError, match="DoRA"):
        hlr.predict_learning_rate(learned(method="dora"), learnable(12), predictor="eigenvalue", fast=True)


def test_the_same_request_gives_the_same_prediction_to_the_last_bit():
    one, two = (hlr.predict_learning_rate(learned(), learnable(12)) for _ in range(2))
    assert (one.lr, one.adam.lambda_preconditioned) == (two.lr, two.adam.lambda_preconditioned)


def test_alpha_traded_for_the_size_of_a_moves_the_prediction_as_it_moves_training():
    # s·B·A with s/p² , p·A and p·B is the same function, and Adam's steps are worth p times less.
    p = 4.0
    plain, scaled = learned(method="pissa"), learned(method="pissa")
    with torch.no_grad():
        for module in scaled.modules():
            if hasattr(module, "lora_A") and module.lora_A:
                module.scaling["default"] /= p * p
                module.lora_A["default"].weight.mul_(p)
                module.lora_B["default"].weight.mul_(p)
    batches = learnable(12)
    one = hlr.predict_learning_rate(plain, batches)
    two = hlr.predict_learning_rate(scaled, batches)
    assert mean_loss(plain, batches) == pytest.approx(mean_loss(scaled, batches), rel=1e-4)
    # The warm-up's size is found on a grid of factors of two, which p = 4 lies on.
    assert two.lr == pytest.approx(p * one.lr, rel=0.05)


def test_without_held_out_errors_the_range_is_that_of_a_prediction_interval():
    law = PowerLaw(2.0, {"x": -0.5}, {"x": 4.0}, log_scatter=0.2, settings=5, sources={})
    assert law(x=16.0) == pytest.approx(1.0)
    # t(0.9, 4 degrees of freedom) = 1.533; √(1 + 1/5) = 1.095.
    assert law.range_factor(x=16.0) == pytest.approx(math.exp(1.5332 * 0.2 * 1.0954), rel=1e-3)


@pytest.mark.parametrize(("steps", "distance"), [(10, math.log(3)), (30, 0), (60, 0), (240, math.log(2))])
def test_outside_its_domain_a_law_says_so_and_widens_its_range(steps, distance):
    law = PowerLaw(
        2.0,
        {"steps": -0.2},
        {},
        log_scatter=0.2,
        settings=50,
        sources={},
        log_half_width=0.5,
        domain={"steps": [30, 120]},
    )
    assert law.range_factor(steps=steps) == pytest.approx(math.exp(0.5 + EXTRAPOLATION * distance))
    assert [f"steps {steps}" in told for told in law.outside(steps=steps)] == [True] * (distance > 0)


def test_adams_law_takes_all_its_quantities_and_tells_what_lies_outside(monkeypatch):
    import hessian_lr.predict.predictor as predictor

    measured = AdamSharpness(
        *(3800.0, 1.0, 4000.0, 10.0, "converged", 1e-2, None, None, 4e-2, 1e-3, 10, 9, 30.0, 1.0, 10)
    )
    monkeypatch.setattr(predictor, "adam_sharpness", lambda *_, **__: measured)
    law = PowerLaw(
        0.5,
        {"lr_stability": 0.5, "lr_critical_start": 0.5, "batch_size": 1.0, "steps": -1.0},
        {"batch_size": 4, "steps": 60},
        log_scatter=0.1,
        settings=50,
        sources={},
        log_half_width=math.log(2),
        domain={"steps": [30, 60]},
    )
    constants = dataclasses.replace(load_calibration(), adam=law)
    found = hlr.predict_learning_rate(
        learned(), learnable(2), predictor="adam", calibration=constants, steps=120, batch_size=8
    )
    assert found.lr == pytest.approx(0.5 * (1e-2 * 4e-2) ** 0.5 * 2 / 2)
    factor = 2 * 2**EXTRAPOLATION
    assert (found.lr_low, found.lr_high) == pytest.approx((found.lr / factor, found.lr * factor))
    assert len(found.notes) == 1 and "steps 120" in found.notes[0]


def test_every_constant_of_the_calibration_names_its_source():
    calibration = load_calibration()
    for law in (calibration.combined, calibration.adam, calibration.eigenvalue):
        assert set(law.sources) >= {"scale", "log_scatter", *law.exponents}
        assert all(len(text) > 10 for text in law.sources.values())
        assert law.settings >= 2


def test_failures_are_results_without_numbers_and_wrong_requests_are_errors():
    model = learned()
    trainable(model)[0].data[0, 0] = math.nan
    found = hlr.predict_learning_rate(model, learnable(12))
    assert found.status == "failed"
    assert found.lr is found.lr_low is found.lr_high is None
    # Both measurements failed, for one reason.
    assert found.notes[0].count("not finite") == 1
    with pytest.raises(RequestError, match="Did you mean 'eigenvalue'"):
        hlr.predict_learning_rate(learned(), learnable(12), predictor="eigenvalues")
    with pytest.raises(RequestError, match="at least two batches"):
        hlr.predict_learning_rate(learned(), learnable(1))
