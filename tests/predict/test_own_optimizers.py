"""Methods with an optimizer of their own: LoRA+ and LoFT in a run, in its warm-up and in its prediction."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import tiny_sweep as tiny
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from tiny_models import base_model, counting_batch, learned
from tolerances import ADAMS_EPSILON, SAME_WEIGHTS
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from hessian_lr.curvature.adam import adam_preconditioner, rate_factors
from hessian_lr.curvature.loss import trainable
from hessian_lr.curvature.vectors import flatten
from hessian_lr.data import make_batches
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.measure.preconditioned import adam_sharpness
from hessian_lr.measure.warmup import warm_up
from hessian_lr.methods import METHODS, adapted
from hessian_lr.methods.lora_plus import RATIO
from hessian_lr.predict import predict_learning_rate
from hessian_lr.predict.other_adapters import other_adapter
from hessian_lr.sweep import run_key, train_once
from hessian_lr.sweep.trainer import fit

OWN = ["lora+", "loft"]
LR = 0.02
PLUS = METHODS["lora+"].optimizer


pytestmark = pytest.mark.usefixtures("one_thread")


def setting(method: str, **changes: Any) -> Any:
    return dataclasses.replace(tiny.SETTING, method=method, **changes)


def batches(count: int) -> list[dict[str, Tensor]]:
    return [counting_batch(8, 3, index) for index in range(count)]


def is_b(model: torch.nn.Module) -> Tensor:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return torch.cat([torch.full((p.numel(),), "lora_B" in name) for name, p in trained])


def weights(model: torch.nn.Module) -> Tensor:
    return flatten(trainable(model))


def trained(method: str, steps: int) -> torch.nn.Module:
    """The tiny model after ``fit``, on one batch again and again."""
    data, wanted = tiny.tiny_data(), setting(method, steps=steps)
    model = adapted(wanted, tiny.tiny_model(), data)
    fit(model, data.train[:4], wanted, LR, dtype=torch.float32, pad_id=0)
    return model


def by_hand(method: str, steps: int) -> torch.nn.Module:
    """The same by a loop written out: cosine schedule, one step of warm-up, each method's own clipping."""
    data = tiny.tiny_data()
    model = adapted(setting(method), tiny.tiny_model(), data)
    if method == "loft":
        optimizer = METHODS["loft"].optimizer(model, LR, betas=(0.9, 0.999), eps=1e-8, max_norm=1.0)
    else:
        named = list(model.named_parameters())
        groups = [
            {"params": [p for name, p in named if "lora_A" in name], "lr": LR},
            {"params": [p for name, p in named if "lora_B" in name], "lr": 16 * LR},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, steps)
    (batch,) = make_batches(data.train[:4], 4, 0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        if method != "loft":
            torch.nn.utils.clip_grad_norm_(trainable(model), 1.0)
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("method", OWN)
def test_a_run_trains_with_the_methods_own_optimizer(method: str) -> None:
    ours, theirs, plain = trained(method, 8), by_hand(method, 8), trained("lora", 8)
    start = adapted(setting(method), tiny.tiny_model(), tiny.tiny_data())
    moved = torch.linalg.norm(weights(theirs) - weights(start))
    assert torch.linalg.norm(weights(theirs) - weights(ours)) < SAME_WEIGHTS * moved
    assert torch.linalg.norm(weights(theirs) - weights(plain)) > 0.1 * moved


@pytest.mark.parametrize("method", OWN)
def test_a_run_learns_and_is_not_mistaken_for_plain_loras(method: str) -> None:
    loaded, data = tiny.tiny_model(), tiny.tiny_data()
    result = train_once(setting(method), LR, loaded, data)
    assert not result.diverged
    assert result.final_loss < result.initial_loss - 1
    assert result.key == run_key(setting(method), LR, data.digest, loaded.fingerprint)
    assert result.key != run_key(setting("lora"), LR, data.digest, loaded.fingerprint)
    assert train_once(setting(method), LR, loaded, data).final_loss == result.final_loss


def test_lora_plus_gives_b_sixteen_times_the_rate_of_a() -> None:
    model = learned()
    optimizer = warm_up(model, batches(3), steps=3, top_lr=1e-3, dtype=torch.float32, optimizer=PLUS)
    factors = rate_factors(optimizer, trainable(model))
    torch.testing.assert_close(factors, torch.where(is_b(model), 16.0, 1.0))
    # The step it takes is −η·P⁻¹·m with these factors in P.
    before = weights(model)
    optimizer.step()
    first = flatten([optimizer.state[p]["exp_avg"] for p in trainable(model)])
    step = 1e-3 * first / adam_preconditioner(optimizer, trainable(model))
    torch.testing.assert_close(before - weights(model), step, rtol=1e-3, atol=1e-7)


def rescaled(p: float, q: float) -> Any:
    """The learned model, in float64, after alpha → alpha/(p·q), A → p·A, B → q·B."""
    model = learned().double()
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "lora_A") and layer.lora_A:
                layer.scaling["default"] /= p * q
                layer.lora_A["default"].weight.mul_(p)
                layer.lora_B["default"].weight.mul_(q)
    return model


def test_with_alpha_in_place_of_the_ratio_lora_plus_is_plain_lora() -> None:
    # q = 1/16 takes η_B = 16·η back to η: the same training, so the same λ_P and the same learning rate.
    sample, warmup = batches(12)[10:], batches(10)
    options = {"dtype": torch.float64, "rtol": 0.01}
    one = adam_sharpness(rescaled(1, 1), sample, warmup, **options, optimizer=PLUS)
    two = adam_sharpness(rescaled(1, 1 / RATIO), sample, warmup, **options)
    for name in ("lambda_preconditioned", "lr_stability", "lr_critical_start", "warmup_lr"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=ADAMS_EPSILON), name
    assert (one.lr_directional or 0.0) == pytest.approx(two.lr_directional or 0.0, rel=ADAMS_EPSILON)
    # Without its own optimizer the prediction would be another one.
    blind = adam_sharpness(rescaled(1, 1), sample, warmup, **options)
    assert blind.lr_stability > 2 * one.lr_stability


def test_alpha_traded_for_the_size_of_both_factors_moves_the_prediction_as_it_moves_training() -> None:
    # q = p leaves the ratio what it is.
    p = 4.0
    one = predict_learning_rate(rescaled(1, 1), batches(12), dtype=torch.float64, optimizer=PLUS)
    two = predict_learning_rate(rescaled(p, p), batches(12), dtype=torch.float64, optimizer=PLUS)
    assert two.lr == pytest.approx(p * one.lr, rel=ADAMS_EPSILON)
    assert two.adam.lr_stability == pytest.approx(p * one.adam.lr_stability, rel=ADAMS_EPSILON)


def test_one_rate_that_is_zero_at_the_moment_is_a_factor_of_one() -> None:
    model = get_peft_model(base_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-3)
    optimizer.param_groups[0]["lr"] = 0.0
    assert set(rate_factors(optimizer, trainable(model)).tolist()) == {1.0}


@pytest.mark.parametrize("method", OWN)
def test_a_prediction_with_its_own_optimizer_leaves_no_trace(method: str) -> None:
    model = learned(method=method)
    before = copy.deepcopy(model.state_dict())
    found = predict_learning_rate(model, batches(12), optimizer=METHODS[method].optimizer)
    assert found.status == "converged"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda model, lr, **_: torch.optim.SGD(trainable(model), lr=lr),
            "Adam's geometry, which SGD does not",
        ),
        (lambda model, lr, **_: torch.optim.AdamW(trainable(model), lr=1e-3), "made AdamW with 0.001: the"),
        (lambda model, lr, **_: torch.optim.AdamW(trainable(model)[1:], lr=lr), "lacks 1 of the"),
        (
            lambda model, lr, **_: torch.optim.AdamW(trainable(model), lr=lr, betas=(0.95, 0.999)),
            "a β₁ of 0.9 and made AdamW with 0.95",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_predicted_for_is_named_before_any_search(make, message):
    with pytest.raises(RequestError, match=message):
        predict_learning_rate(learned(), batches(4), predictor="adam", optimizer=make)


def test_parameters_held_at_a_rate_of_0_are_told_as_such():
    """A moves and B is held; both have gradients."""

    def b_held(model, lr, *, betas, eps):
        named = {kind: [p for n, p in model.named_parameters() if kind in n] for kind in ("lora_A", "lora_B")}
        groups = [{"params": named["lora_A"]}, {"params": named["lora_B"], "lr": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0)

    model = learned(method="pissa")  # whose A has a gradient from the start
    found = adam_sharpness(model, batches(2), batches(2), optimizer=b_held)
    share = float(is_b(model).float().mean())
    told = f"λ_P leaves out {share:.1%} of the parameters, which the warm-up did not move: "
    (note,) = [note for note in found.notes if note.startswith(told)]
    assert note.endswith("no gradient, or their learning rate is 0")


@pytest.mark.parametrize("method", OWN)
def test_along_what_no_step_leads_uphill_is_the_methods_own_step(method, monkeypatch):
    monkeypatch.setattr("hessian_lr.measure.first_step.critical_learning_rate", lambda *_, **__: (None, 1))
    optimizer = METHODS[method].optimizer
    with pytest.raises(HessianLRError, match="into uphill along the optimizer's first step: "):
        adam_sharpness(learned(method=method), batches(2), batches(2), optimizer=optimizer)


@pytest.mark.parametrize("kind", [IA3Config, LoraConfig, None])
def test_what_is_no_adapter_of_loras_kin_is_told(kind):
    model = base_model("llama")
    if kind is not None:
        modules = {"target_modules": ["v_proj", "down_proj"]}
        if kind is IA3Config:
            modules["feedforward_modules"] = ["down_proj"]
        model = get_peft_model(model, kind(task_type="CAUSAL_LM", **modules))
    told = [note for note in other_adapter(model) if "LoRA and its kin" in note]
    assert told == [] if kind is LoraConfig else "IA3" in told[0] or "no PEFT adapter" in told[0]
