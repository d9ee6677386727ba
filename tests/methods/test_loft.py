"""LoFT's optimizer: AdamW of the weight where rank allows, and its projection where it does not."""

from __future__ import annotations

import dataclasses
from collections import namedtuple

import pytest
import torch
from tiny_models import ARCHITECTURES, base_model, counting_batch, learned, make_batch
from tolerances import ADAMW64, SAME_STEP
from torch import Tensor, nn

from hessian_lr import methods
from hessian_lr.curvature.loss import mean_loss, trainable
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.curvature.vectors import flatten, unflatten
from hessian_lr.errors import RequestError
from hessian_lr.measure.warmup import warm_up
from hessian_lr.methods import METHODS, find_targets
from hessian_lr.methods import loft as loft_module
from hessian_lr.methods.loft_adamw import LoftAdamW, LoftGeometry
from hessian_lr.predict import load_calibration, predict_learning_rate
from hessian_lr.predict.extent import extent
from hessian_lr.setting import Setting

LR, BETAS, EPSILON = 0.05, (0.9, 0.999), 1e-8
STEPS = 40
SETTING = Setting(method="loft", rank=4, alpha=4)


class Quadratic:
    """L(W) = ½·Σ H_ij·(W_ij − T_ij)², with a new target T at every step: gradients with noise."""

    def __init__(self, rows: int, columns: int, seed: int = 0) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.start = self.random(rows, columns)
        self.curvature = 0.1 + torch.rand(rows, columns, generator=self.draw, dtype=torch.float64)
        self.targets = [self.random(rows, columns) for _ in range(STEPS)]

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draw, dtype=torch.float64)

    def loss(self, weight: Tensor, step: int) -> Tensor:
        return (self.curvature * (weight - self.targets[step]) ** 2).sum() / 2

    def gradient(self, weight: Tensor, step: int) -> Tensor:
        return self.curvature * (weight - self.targets[step])


def follow(
    problem: Quadratic, a: Tensor, b: Tensor, scaling: float, max_norm: float | None = None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(A, B, W + s·B·A) after each LoFT step, W taken so that it starts at the problem's start."""
    a, b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
    frozen = problem.start - scaling * (b @ a).detach()
    optimizer = LoftAdamW([(a, b, scaling)], LR, betas=BETAS, eps=EPSILON, max_norm=max_norm)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        problem.loss(frozen + scaling * b @ a, step).backward()
        optimizer.step()
        seen.append(tuple(value.detach().clone() for value in (a, b, frozen + scaling * b @ a)))
    return seen


def follow_adamw(problem: Quadratic, max_norm: float | None) -> list[Tensor]:
    weight = nn.Parameter(problem.start.clone())
    optimizer = torch.optim.AdamW([weight], LR, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        problem.loss(weight, step).backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_([weight], max_norm)
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("scaling", [1.0, 0.3])
def test_with_factors_of_full_rank_the_weight_follows_adamw(scaling: float, max_norm: float | None) -> None:
    problem = Quadratic(6, 6)
    eye = torch.eye(6, dtype=torch.float64)
    a, b = eye + 0.1 * problem.random(6, 6), 2 * eye + 0.1 * problem.random(6, 6)
    ours = [weight for _, _, weight in follow(problem, a, b, scaling, max_norm)]
    theirs = follow_adamw(problem, max_norm)
    assert torch.linalg.norm(theirs[-1] - problem.start) > 1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ADAMW64)


History = namedtuple("History", "of_b of_a")


@pytest.mark.parametrize("zero_b", [False, True])
def test_with_a_low_rank_the_weight_follows_adamw_of_the_projected_gradients(zero_b: bool) -> None:
    """Against every projected gradient of the past kept whole (m × n), and projected again at each step."""
    problem = Quadratic(7, 5)
    a = problem.random(2, 5)
    b = torch.zeros(7, 2, dtype=torch.float64) if zero_b else problem.random(7, 2)
    seen = follow(problem, a, b, scaling=0.7)
    weight, past = problem.start, History([], [])
    for step in range(STEPS):
        # The projections are onto what LoFT's own factors were; the moments and steps are dense.
        a, b = (a, b) if step == 0 else seen[step - 1][:2]
        on_rows = torch.linalg.pinv(a) @ a
        on_columns = b @ torch.linalg.pinv(b)
        gradient = problem.gradient(weight, step)
        past.of_b[:] = [x @ on_rows for x in (*past.of_b, gradient)]
        past.of_a[:] = [on_columns @ x for x in (*past.of_a, gradient)]
        turn = past.of_a if step % 2 else past.of_b
        ages = range(step, -1, -1)
        first = sum((1 - BETAS[0]) * BETAS[0] ** age * x for age, x in zip(ages, turn, strict=True))
        second = sum((1 - BETAS[1]) * BETAS[1] ** age * x**2 for age, x in zip(ages, turn, strict=True))
        whole = (first / (1 - BETAS[0] ** (step + 1))) / (
            (second / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON
        )
        weight = weight - LR * (on_columns @ whole if step % 2 else whole @ on_rows)
        torch.testing.assert_close(seen[step][2], weight, rtol=0, atol=ADAMW64)


def test_neither_alpha_nor_the_factors_basis_changes_what_is_learned() -> None:
    problem = Quadratic(7, 5)
    a, b = problem.random(3, 5), problem.random(7, 3)
    change = problem.random(3, 3)
    plain = follow(problem, a, b, 1.0)[-1][2]
    other = follow(problem, torch.linalg.inv(change) @ a, b @ change / 5, 5.0)[-1][2]
    torch.testing.assert_close(other, plain, rtol=0, atol=ADAMW64)


def batches(count: int) -> list[dict[str, Tensor]]:
    return [counting_batch(8, 3, index) for index in range(count)]


def make(model: nn.Module, lr: float = 1.0) -> LoftAdamW:
    made = METHODS["loft"].optimizer(model, lr, betas=BETAS, eps=EPSILON)
    assert isinstance(made, LoftAdamW)
    return made


def test_the_geometry_is_that_of_the_step() -> None:
    # After one step A, in whose rows B's moments stand, is what it was: B moved by −η·u = −η·K·(1 − β₁)·g.
    model = learned().double()
    parameters = trainable(model)
    optimizer = make(model)
    before = flatten(parameters)
    gradient = HessianOperator(model, batches(2)).gradient()
    for parameter, piece in zip(parameters, unflatten(gradient, parameters), strict=True):
        parameter.grad = piece
    optimizer.step()
    moved = before - flatten(parameters)
    geometry = optimizer.geometry(parameters)
    applied = geometry.root(geometry.root((1 - BETAS[0]) * gradient))
    of_b = torch.cat([torch.full((p.numel(),), p.shape[1] == 4) for p in parameters])
    assert bool(moved[of_b].any()) and not bool(moved[~of_b].any())
    for same in (geometry.direction, applied):
        torch.testing.assert_close(same[of_b], moved[of_b], rtol=SAME_STEP, atol=SAME_STEP)


def test_the_next_step_is_the_geometrys_where_the_gradient_stays() -> None:
    # After many steps on one gradient the running mean has settled, and one more step changes it little.
    model = learned().double()
    parameters = trainable(model)
    gradient = HessianOperator(model, batches(2)).gradient()
    optimizer = make(model, 1e-7)
    for parameter, piece in zip(parameters, unflatten(gradient, parameters), strict=True):
        parameter.grad = piece
    for _ in range(60):
        optimizer.step()
    direction = optimizer.geometry(parameters).direction
    before = flatten(parameters)
    optimizer.step()
    moved = (before - flatten(parameters)) / 1e-7
    changed = moved != 0
    assert int(changed.sum()) > 100
    assert torch.linalg.norm(moved[changed] - direction[changed]) < 0.02 * torch.linalg.norm(moved)


def grows(hessian: Tensor, lr: float) -> bool:
    """Whether ½·θᵀ·H·θ grows under turns of two coordinates with running means of both gradients."""
    theta, mean = torch.tensor([1.0, 0.5], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in range(1000):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * hessian @ theta
        theta = theta - lr * mean * torch.tensor([step % 2 == 0, step % 2 == 1])
    return not float(theta @ hessian @ theta) < 1


# Of λ_P = 1: factors that do not interact, and factors that move the same thing.
@pytest.mark.parametrize(
    ("hessian", "threshold"), [(((1.0, 0.0), (0.0, 1.0)), 19.05), (((0.5, 0.5), (0.5, 0.5)), 76.0)]
)
def test_turns_are_stable_up_to_what_the_geometry_says(
    hessian: tuple[tuple[float, float], ...], threshold: float
) -> None:
    matrix = torch.tensor(hessian, dtype=torch.float64)
    assert grows(matrix, 1.02 * threshold)
    assert not grows(matrix, 0.98 * threshold)
    slack = LoftGeometry.stability_slack
    assert 38 / slack <= threshold * 1.003 and threshold <= 38 * slack


def test_a_prediction_warms_up_with_loft_and_says_what_its_constants_are() -> None:
    model = learned(method="loft")
    loft = METHODS["loft"].optimizer
    found = predict_learning_rate(model, batches(12), optimizer=loft)
    plain = predict_learning_rate(learned(), batches(12))
    assert found.status == "converged" and found.adam.stability_slack == 2
    assert found.lr != pytest.approx(plain.lr, rel=0.1)
    # λ knows nothing of the optimizer, so the law without it takes its place; twice as wide on either side.
    width = 2 * load_calibration().adam.range_factor(steps=60, batch_size=8, **extent(model))
    assert found.lr_high / found.lr_low == pytest.approx(width**2)
    assert any("none with this optimizer" in note for note in found.notes)
    # Taking alpha and A's size apart changes nothing for LoFT, not even the learning rate.
    with torch.no_grad():
        for layer in model.modules():
            if hasattr(layer, "lora_A") and layer.lora_A:
                layer.scaling["default"] /= 3
                layer.lora_A["default"].weight.mul_(5)
    other = predict_learning_rate(model, batches(12), optimizer=loft)
    assert other.lr == pytest.approx(found.lr, rel=0.05)


def test_the_eigenvalue_at_initialization_predicts_nothing_for_it() -> None:
    model = learned(method="loft")
    found = predict_learning_rate(
        model, batches(12), predictor="eigenvalue", optimizer=METHODS["loft"].optimizer
    )
    assert (found.status, found.lr) == ("failed", None)
    assert "use the predictor 'adam'" in found.notes[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_learns_on_every_architecture(architecture: str) -> None:
    model = methods.build(base_model(architecture), dataclasses.replace(SETTING, rank=2, alpha=2))
    data = [make_batch(4, 10, seed) for seed in range(3)]
    before = mean_loss(model, data)
    warm_up(model, data, steps=12, top_lr=3e-2, dtype=torch.float32, optimizer=METHODS["loft"].optimizer)
    assert mean_loss(model, data) < 0.97 * before


def test_memory_that_is_not_there_is_refused_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base_model("llama")
    targets = find_targets(model, "all-linear")
    moments = loft_module.second_moments(4, targets)
    optimizer = make(methods.build(base_model("llama"), SETTING))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert moments == sum(state["second"].nbytes for state in optimizer.state.values())

    free = namedtuple("free", "available")
    monkeypatch.setattr(loft_module.psutil, "virtual_memory", lambda: free(2 * moments - 1))
    with pytest.raises(
        RequestError, match=r"rank times the adapter's size: \S+ GB at rank 4.* GB are free on cpu"
    ):
        methods.check(model, dataclasses.replace(SETTING, device="cpu"))
    monkeypatch.setattr(loft_module.psutil, "virtual_memory", lambda: free(2 * moments))
    methods.check(model, dataclasses.replace(SETTING, device="cpu"))
