import copy
from functools import partial

import pytest
import torch
from once import Once, Square
from peft import OFTConfig, TrainableTokensConfig, get_peft_model
from tiny_models import (
    adapted,
    base_model,
    counting_batch,
    dense_hessian,
    learned,
    make_batch,
    random_vector,
    with_reentrant_checkpoint,
)
from tolerances import CENTRAL_LOSS, SAME_LAMBDA
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

import hessian_lr as hlr
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.central import CentralOperator

BATCHES = [make_batch(2, 9, seed) for seed in range(2)]


@pytest.mark.parametrize(("architecture", "dtype"), [("llama", torch.float32), ("gpt2", torch.float64)])
def test_products_lie_within_the_error_they_report(architecture, dtype):
    """Of four eigenvectors, two from each end, and eight random vectors a model: none outside."""
    exact = dense_hessian(adapted(architecture), BATCHES)
    _, vectors = torch.linalg.eigh(exact)
    operator = CentralOperator(adapted(architecture, dtype), BATCHES, dtype=dtype)
    operator.matvec(random_vector(operator.size).to(dtype))
    ends = [vectors[:, i] for i in (0, 1, -2, -1)]
    violations = 0
    for seed, vector in enumerate([*ends, *(random_vector(operator.size, seed=s) for s in range(8))]):
        unit = vector / vector.norm()
        claimed = operator.check(unit.to(dtype))
        image = exact @ unit
        true = float((operator.matvec(unit.to(dtype)).double() - image).norm() / image.norm())
        violations += true > claimed
        if seed < len(ends):
            assert claimed < 0.05
    assert violations == 0


def test_weights_gradients_modes_and_random_state_are_left_bit_for_bit():
    model = adapted(dtype=torch.float32)
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy({n: p.detach() for n, p in model.named_parameters()})
    state = torch.get_rng_state()
    hlr.sharpness(model, BATCHES, operator="central-differences")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None or bool((parameter.grad == 1).all())
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_weights_that_moved_are_the_ones_measured():
    model = adapted()
    operator = CentralOperator(model, BATCHES, dtype=torch.float64)
    vector = random_vector(operator.size)
    operator.matvec(vector)
    with torch.no_grad():
        for parameter in operator.parameters:
            parameter.mul_(1.5)
    expected = HessianOperator(model, BATCHES, dtype=torch.float64).matvec(vector)
    assert float((operator.matvec(vector) - expected).norm() / expected.norm()) < 1e-4


def _squared(by):
    model = adapted("llama", torch.float32)
    norm = model.get_base_model().model.norm
    norm.register_forward_hook(lambda _module, _inputs, out: by(out))
    return model


@pytest.mark.parametrize("function", [Square, Once])
def test_a_function_without_second_derivative_is_measured_by_differences(function):
    expected = hlr.sharpness(_squared(lambda x: x + x * x), BATCHES, rtol=0.01)
    found = hlr.sharpness(_squared(function.apply), BATCHES, rtol=0.01)
    assert function.__qualname__ in " ".join(found.notes) and "central differences" in " ".join(found.notes)
    assert expected.difference_error is None
    assert abs(found.lambda_max / expected.lambda_max - 1) < 0.01 + found.difference_error


def test_reentrant_checkpoints_are_measured_by_differences():
    expected = hlr.sharpness(adapted("llama", torch.float32), BATCHES, rtol=0.01)
    found = hlr.sharpness(with_reentrant_checkpoint(adapted("llama", torch.float32)), BATCHES, rtol=0.01)
    assert "central differences" in " ".join(found.notes)
    assert abs(found.lambda_max / expected.lambda_max - 1) < 0.01 + found.difference_error


def _checkpointed_by_itself(model):
    for layer in model.get_base_model().model.layers:
        plain = layer.forward
        layer.forward = lambda x, plain=plain, **more: checkpoint(plain, x, use_reentrant=False, **more)
    return model


def test_checkpoints_of_a_models_own_are_measured_by_differences():
    expected = hlr.sharpness(adapted("llama", torch.float32), BATCHES, rtol=0.01)
    model = _checkpointed_by_itself(adapted("llama", torch.float32))
    found = hlr.sharpness(model, BATCHES, rtol=0.01)
    assert "central differences (it has checkpoints of its own)" in " ".join(found.notes)
    assert abs(found.lambda_max / expected.lambda_max - 1) < 0.01 + found.difference_error


@pytest.mark.parametrize("kind", list(CheckpointImpl))
@pytest.mark.parametrize("operator", ["hessian", "central-differences"])
def test_torchs_checkpoint_wrappers_change_nothing(kind, operator):
    model = adapted("llama", torch.float32)
    model.enable_input_require_grads()
    wrap = partial(checkpoint_wrapper, checkpoint_impl=kind)
    of = type(model.get_base_model().model.layers[0])
    apply_activation_checkpointing(model, checkpoint_wrapper_fn=wrap, check_fn=lambda one: type(one) is of)
    before = [layer.checkpoint_fn for layer in model.get_base_model().model.layers]
    found = hlr.sharpness(model, BATCHES, operator=operator)
    expected = hlr.sharpness(adapted("llama", torch.float32), BATCHES, operator=operator)
    assert found.lambda_max == pytest.approx(expected.lambda_max, rel=SAME_LAMBDA)
    assert found.notes == expected.notes
    assert [layer.checkpoint_fn for layer in model.get_base_model().model.layers] == before


def test_where_differences_do_not_serve_the_search_is_not_blamed(monkeypatch):
    monkeypatch.setattr(CentralOperator, "check", lambda *_: 0.5)
    found = hlr.sharpness(adapted("llama", torch.float32), BATCHES, operator="central-differences")
    assert found.status == "budget" and found.difference_error == 0.5
    assert not any("stopped after" in note for note in found.notes)


def test_the_models_own_checkpointing_runs_and_changes_nothing(monkeypatch):
    model = adapted("llama", torch.float32)
    expected = CentralOperator(adapted("llama", torch.float32), BATCHES)
    vector = random_vector(expected.size).float()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    operator = CentralOperator(model, BATCHES)
    calls = []
    for layer in model.get_base_model().model.layers:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    operator.step = expected.step = 1e-3
    found = operator.matvec(vector)
    # Two signs, two batches, two layers, each run once more on the way back.
    assert len(calls) == 2 * len(operator.batches) * 2 * 2
    assert torch.allclose(found, expected.matvec(vector), rtol=1e-3, atol=1e-4)


def test_bfloat16_is_answered_in_float32_and_an_adapter_in_it_refused():
    found = hlr.sharpness(
        adapted(dtype=torch.float32), BATCHES, operator="central-differences", dtype=torch.bfloat16
    )
    assert "in float32, as bfloat16" in " ".join(found.notes)
    with pytest.raises(hlr.RequestError, match="make the adapter float32"):
        CentralOperator(adapted(dtype=torch.bfloat16), BATCHES)


def test_a_base_in_bfloat16_is_noted_or_refused_but_never_converged_wrongly():
    for architecture in ("llama", "gpt2"):
        model = adapted(architecture, torch.float32)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        exact = hlr.sharpness(adapted(architecture, torch.float32), BATCHES)
        found = hlr.sharpness(model, BATCHES, operator="central-differences")
        if found.status == "converged":
            assert abs(found.lambda_max / exact.lambda_max - 1) < 0.15
        else:
            assert found.notes


SHORT, LONG = make_batch(1, 6, seed=0), make_batch(2, 9, seed=1)
# A token that only the longer rows have.
SOME_TOKENS = [
    {name: value.where(value != 5, 6) for name, value in SHORT.items()},
    LONG | {"input_ids": LONG["input_ids"].index_fill(1, torch.tensor(2), 5)},
]


def zero_at_the_start():
    config = OFTConfig(oft_block_size=4, r=0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(base_model("llama"), config)


def of_one_token():
    config = TrainableTokensConfig(token_indices=[5], target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    return get_peft_model(base_model("qwen2"), config)


@pytest.mark.parametrize(("make", "batches"), [(zero_at_the_start, BATCHES), (of_one_token, SOME_TOKENS)])
def test_a_step_is_found_from_zeros_and_where_the_shortest_row_says_nothing(make, batches):
    exact = hlr.sharpness(make(), batches)
    found = hlr.sharpness(make(), batches, operator="central-differences")
    assert exact.status == found.status == "converged"
    assert found.lambda_max == pytest.approx(exact.lambda_max, rel=found.difference_error)


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_the_loss_is_that_of_the_point_and_not_of_a_step_beside_it(method):
    batches = [counting_batch(2, 3, seed) for seed in range(2)]
    exact = hlr.sharpness(learned(method=method), batches).loss
    assert hlr.sharpness(
        learned(method=method), batches, operator="central-differences"
    ).loss == pytest.approx(exact, rel=CENTRAL_LOSS)
