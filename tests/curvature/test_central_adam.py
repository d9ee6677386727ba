"""λ_P of models that can be differentiated only once, held against the exact operator's."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
from once import Once, Square
from tiny_models import adapted, counting_batch, dense_hessian, learned, make_batch, with_reentrant_checkpoint
from tolerances import CENTRAL_LAMBDA_P

import hessian_lr as hlr
from hessian_lr.checkpoints import Checkpoints
from hessian_lr.curvature import HessianOperator
from hessian_lr.curvature.adam import PreconditionedOperator
from hessian_lr.curvature.central import CentralOperator, twice_or_central
from hessian_lr.errors import NotTwiceDifferentiable
from hessian_lr.measure import adam_sharpness, preconditioned
from hessian_lr.methods import METHODS
from hessian_lr.setting import Setting
from hessian_lr.spectrum import checkpoint as state

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = [counting_batch(8, 3, seed) for seed in range(5)]
WARMUP, SAMPLE = ROWS[:3], ROWS[3:]
SAME = ("lambda_preconditioned", "lr_stability", "lr_critical_start", "warmup_lr", "sampling_error")


def plain(x):
    return x + x * x


def bent(by, method="pissa"):
    """A model that has learned to count, with x + x² somewhere inside."""
    model = learned(method=method)
    model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, out: by(out))
    return model


def alike(one, other):
    for name in SAME:
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=CENTRAL_LAMBDA_P), name


@pytest.mark.parametrize(("function", "method"), [(Square, "pissa"), (Once, "lora")])
def test_without_second_derivative_lambda_p_is_that_of_the_same_function_with_one(function, method):
    exact = adam_sharpness(bent(plain, method), SAMPLE, WARMUP, rtol=0.01, max_products=80)
    found = adam_sharpness(bent(function.apply, method), SAMPLE, WARMUP, rtol=0.01, max_products=80)
    alike(found, exact)
    assert found.status == exact.status == "converged"
    assert any(
        function.__qualname__ in note and "off by at most" in note and "central differences" in note
        for note in found.notes
    )
    assert not any("central" in note for note in exact.notes)
    # A product is two gradients, here as there where graphs are rebuilt; the check's two are counted.
    assert found.matvecs >= exact.matvecs + 2
    assert found.gradient_equivalents > 2 * found.matvecs + 10


@pytest.mark.parametrize("method", ["loft", "lora+"])
def test_an_optimizers_own_geometry_is_that_which_steps_and_errors_are_measured_in(method, monkeypatch):
    """The same weights, as LoFT's warm-up makes much of the last bits in which two functions differ."""
    options = {"optimizer": METHODS[method].optimizer, "rtol": 0.01, "max_products": 80}
    exact = adam_sharpness(bent(plain), SAMPLE, WARMUP, **options)
    monkeypatch.setattr(
        preconditioned, "twice_or_central", lambda measure: measure(partial(CentralOperator, why="x"))
    )
    found = adam_sharpness(bent(plain), SAMPLE, WARMUP, **options)
    alike(found, exact)
    assert (found.lr_directional or 0.0) == pytest.approx(exact.lr_directional or 0.0, rel=CENTRAL_LAMBDA_P)


def test_preconditioned_products_lie_within_the_error_they_report():
    """Against a dense float64 Hessian, in a geometry whose coordinates weigh from 1 to 10⁶."""
    batches = [make_batch(2, 9, seed) for seed in range(2)]
    exact = dense_hessian(adapted("llama", torch.float32), batches).double()
    n = len(exact)
    draw = torch.Generator().manual_seed(0)
    diagonal = 10 ** (-6 * torch.rand(n, generator=draw, dtype=torch.float64))
    root = diagonal.rsqrt()
    truth = root[:, None] * exact * root
    _, vectors = torch.linalg.eigh(truth)
    operator = CentralOperator(adapted("llama", torch.float32), batches)
    measured = PreconditionedOperator(operator, diagonal.float())
    step = operator.choose_step(lambda v: measured.root * v)
    for vector in (vectors[:, 0], vectors[:, -1], *torch.randn(4, n, generator=draw).double()):
        unit = vector / vector.norm()
        claimed = operator.check(unit.float(), lambda v: measured.root * v)
        image = truth @ unit
        assert operator.step == step
        assert float((measured.matvec(unit.float()).double() - image).norm() / image.norm()) < claimed


def test_the_combined_prediction_has_both_measurements_and_that_of_the_twin():
    exact = hlr.predict_learning_rate(bent(plain), SAMPLE, warmup_batches=WARMUP)
    found = hlr.predict_learning_rate(bent(Square.apply), SAMPLE, warmup_batches=WARMUP)
    assert found.curvature is not None and found.adam is not None
    assert not any("sharpness in Adam's geometry" in note for note in found.notes)
    assert found.lr == pytest.approx(exact.lr, rel=0.01)
    assert found.status == exact.status == "converged"


def test_reentrant_checkpoints_are_warmed_up_and_measured():
    exact = adam_sharpness(learned(method="pissa"), SAMPLE, WARMUP, rtol=0.01)
    found = adam_sharpness(with_reentrant_checkpoint(learned(method="pissa")), SAMPLE, WARMUP, rtol=0.01)
    alike(found, exact)
    assert any("CheckpointFunction" in note for note in found.notes)
    # What lies inside has a gradient that autograd.grad takes for zero.
    with pytest.raises(NotTwiceDifferentiable):
        HessianOperator(
            with_reentrant_checkpoint(learned(method="pissa")), SAMPLE, memory_budget=0
        ).gradient()


def test_weights_gradients_modes_and_random_state_are_left_bit_for_bit():
    model = bent(Once.apply)
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    adam_sharpness(model, SAMPLE, WARMUP)
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None or bool((parameter.grad == 1).all())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_bfloat16_warms_up_as_asked_and_is_answered_in_float32():
    found = adam_sharpness(bent(Square.apply), SAMPLE, WARMUP, dtype=torch.bfloat16)
    assert any("in float32, as bfloat16" in note for note in found.notes)
    assert found.status == "converged"


class Killed(BaseException):
    """Not an Exception, as a kill would pass every handler."""


@pytest.mark.parametrize("products", [3, 6])
def test_it_goes_on_from_its_state_to_the_last_bit(products, tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SHARE", float("inf"))
    whole = adam_sharpness(bent(Square.apply), SAMPLE, WARMUP, rtol=0.01)
    real, left = CentralOperator.matvec, [products]

    def matvec(self, vector):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return real(self, vector)

    def measure():
        kept = Checkpoints(tmp_path, Setting(rank=4))
        return adam_sharpness(bent(Square.apply), SAMPLE, WARMUP, rtol=0.01, checkpoints=kept), kept

    monkeypatch.setattr(CentralOperator, "matvec", matvec)
    with pytest.raises(Killed):
        measure()
    left[0] = -1
    resumed, kept = measure()
    # One product is along the step, before Lanczos.
    assert kept.notes[0].startswith(f"went on after {products - 1} products")
    for name in ("lambda_preconditioned", "residual", "upper", "sampling_error", "lr_directional"):
        assert getattr(resumed, name) == getattr(whole, name), name
    assert resumed.matvecs == whole.matvecs - (products - 1)
    # An exact operator does not take it.
    exact = Checkpoints(tmp_path, Setting(rank=4))
    adam_sharpness(bent(plain), SAMPLE, WARMUP, rtol=0.01, checkpoints=exact)
    assert "matrix" in " ".join(exact.notes)


def test_what_the_exact_attempt_built_is_gone_when_differences_begin():
    class Graph:
        pass

    seen = []

    def measure(make):
        if seen:
            gc.disable()
            assert seen[0]() is None
            return make
        graph = Graph()
        seen.append(weakref.ref(graph))
        raise NotTwiceDifferentiable("no")

    try:
        assert twice_or_central(measure).func is CentralOperator
    finally:
        gc.enable()
