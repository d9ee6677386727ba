"""The critical learning rate: where a direction's loss is back at what it was."""

from __future__ import annotations

import pytest
import torch
from tiny_models import learnable, learned

from hessian_lr.curvature import HessianOperator, mean_loss
from hessian_lr.curvature.loss import trainable
from hessian_lr.measure import line_search
from hessian_lr.measure.line_search import critical_learning_rate


def test_the_critical_learning_rate_of_a_direction_is_where_the_loss_is_back():
    model, batches = learned(), learnable(3)
    direction = HessianOperator(model, batches).gradient().sign()
    found, forwards = critical_learning_rate(model, batches, direction, factor=1.05)
    base = mean_loss(model, batches)

    def loss_at(rate):
        moved = learned()
        with torch.no_grad():
            position = 0
            for parameter in trainable(moved):
                piece = direction[position : position + parameter.numel()]
                parameter.sub_(rate * piece.view_as(parameter))
                position += parameter.numel()
        return mean_loss(moved, batches)

    assert loss_at(found) > base
    assert loss_at(found / 1.06) <= base * (1 + 1e-5)
    assert forwards < 40
    uphill, _ = critical_learning_rate(model, batches, -HessianOperator(model, batches).gradient())
    assert uphill is None


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_the_critical_learning_rate_is_much_the_same_in_bfloat16(method):
    model, batches = learned(method=method), learnable(3)
    direction = HessianOperator(model, batches).gradient().sign()
    exact, _ = critical_learning_rate(model, batches, direction, factor=1.02)
    rough, _ = critical_learning_rate(model, batches, direction, factor=1.02, dtype=torch.bfloat16)
    assert rough == pytest.approx(exact, rel=0.05)


def test_a_way_down_that_bfloat16_cannot_see_is_found_in_float32(monkeypatch):
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()

    def shallow(m, _batches, dtype):
        # A bowl a thousandth of the loss deep, under a floor of bfloat16's size.
        x = -float(m.weight)
        return 1 + 0.004 * (x / 0.02) * (x / 0.02 - 1)

    monkeypatch.setattr(line_search, "mean_loss", shallow)
    found, _ = critical_learning_rate(model, [], torch.ones(1), factor=1.01, dtype=torch.bfloat16)
    assert found == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("critical", [500.0, 3e-9])
def test_the_search_goes_to_the_ends_that_it_tells(critical, monkeypatch):
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()

    def bowl(m, *_):
        x = -float(m.weight) / critical
        return 1 + x * (x - 1)

    monkeypatch.setattr(line_search, "mean_loss", bowl)
    direction = torch.ones(1, dtype=torch.float64)
    found, _ = critical_learning_rate(model, [], direction, factor=1.01, dtype=torch.float64)
    assert found == pytest.approx(critical, rel=0.02)


def test_on_a_quadratic_the_critical_rate_is_twice_the_directional_step(monkeypatch):
    diagonal = torch.tensor([1.0, 2.0, 5.0, 0.5], dtype=torch.float64)
    model = torch.nn.Linear(4, 1, bias=False, dtype=torch.float64)
    monkeypatch.setattr(
        line_search,
        "mean_loss",
        lambda m, *_: float((diagonal * m.weight[0].detach() ** 2).sum() / 2) + 1.0,
    )
    gradient = diagonal * model.weight[0].detach()
    direction = gradient.sign()
    directional = float(gradient @ direction / (direction @ (diagonal * direction)))
    critical, _ = critical_learning_rate(model, [], direction, factor=1.001)
    assert critical == pytest.approx(2 * directional, rel=2e-3)


@pytest.mark.parametrize("start", [1e-4, 5e-3, 0.02 * 0.99999, 0.02, 0.02 * 1.00001, 0.08, 5.0])
def test_on_a_quadratic_every_start_leads_there(start, monkeypatch):
    """L = 1 − w + 50·w² is back at 1 for w = 1/50; a start there moves the loss by nothing."""
    model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()
    monkeypatch.setattr(
        line_search, "mean_loss", lambda m, *_: 1 - float(m.weight) + 50 * float(m.weight) ** 2
    )
    direction = -torch.ones(1, dtype=torch.float64)
    found, _ = critical_learning_rate(model, [], direction, start=start, factor=1.001)
    assert found == pytest.approx(0.02, rel=2e-3)


@pytest.mark.parametrize("flat", [0.0, 1e-2])
def test_a_direction_that_never_leads_down_has_none(flat, monkeypatch):
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    monkeypatch.setattr(line_search, "mean_loss", lambda m, *_: 1 + max(0.0, -float(m.weight) - flat))
    assert critical_learning_rate(model, [], torch.ones(1))[0] is None


def test_a_models_search_may_start_at_the_critical_rate_itself():
    model, batches = learned(), learnable(3)
    direction = HessianOperator(model, batches).gradient().sign()
    there, _ = critical_learning_rate(model, batches, direction, factor=1.00001)
    found, _ = critical_learning_rate(model, batches, direction, start=0.99997 * there)
    assert 0.9999 * there <= found <= 1.2 * there
