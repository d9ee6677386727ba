"""A new peak for a schedule that is made already: it goes on as if made with it, or is refused."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler as S
from transformers.optimization import get_scheduler

from hessian_lr.errors import RequestError
from hessian_lr.integrations.schedule import set_learning_rate


@pytest.mark.parametrize(
    "kind", ["linear", "cosine", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau"]
)
@pytest.mark.parametrize("after", [0, 3])
def test_a_schedule_goes_on_as_if_made_with_the_new_peak(kind, after):
    def made(lr):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([{"params": [parameter]}, {"params": [], "weight_decay": 0.1}], lr=lr)
        options = {} if kind == "reduce_lr_on_plateau" else {"num_warmup_steps": 2, "num_training_steps": 9}
        return optimizer, get_scheduler(kind, optimizer, **options)

    def stepped(optimizer, scheduler, times):
        for _ in range(times):
            optimizer.step()
            scheduler.step(*([1.0] if kind == "reduce_lr_on_plateau" else []))

    ours, theirs = made(5e-5), made(3e-3)
    stepped(*ours, after)
    stepped(*theirs, after)
    assert set_learning_rate(*ours, 3e-3) == 5e-5
    for _ in range(5):
        assert [g["lr"] for g in ours[0].param_groups] == [g["lr"] for g in theirs[0].param_groups]
        assert ours[1].get_last_lr() == theirs[1].get_last_lr()
        stepped(*ours, 1)
        stepped(*theirs, 1)


FLOORS = {
    "cosine_with_min_lr": {"min_lr": 5e-6},
    "cosine_warmup_with_min_lr": {"min_lr": 5e-6},
    "polynomial": {"lr_end": 5e-6},
}


@pytest.mark.parametrize("kind", FLOORS)
def test_a_schedule_ends_at_the_learning_rate_it_was_told_to_end_at(kind):
    def made(lr):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        return optimizer, get_scheduler(kind, optimizer, 2, 9, FLOORS[kind])

    ours, theirs = made(5e-5), made(3e-3)
    set_learning_rate(*ours, 3e-3, FLOORS[kind].get("min_lr"))
    lowest = 3e-3
    for _ in range(10):
        rates = [optimizer.param_groups[0]["lr"] for optimizer, _ in (ours, theirs)]
        assert rates[0] == rates[1]
        lowest = min(lowest, rates[0] or lowest)  # at the very start it is 0
        for optimizer, scheduler in (ours, theirs):
            optimizer.step()
            scheduler.step()
    assert lowest == pytest.approx(5e-6)
    with pytest.raises(RequestError, match="ends at 5e-06, not below the predicted learning rate 1e-06"):
        set_learning_rate(*made(5e-5), 1e-6, FLOORS[kind].get("min_lr"))


def polynomial_after_linear(optimizer):
    """Of transformers' lambdas one in torch's sequence: a share of the peak, made from what it ends at."""
    rise = S.LinearLR(optimizer, 0.5, 1.0, 3)
    fall = get_scheduler("polynomial", optimizer, 0, 7, {"lr_end": 1e-5})
    return S.SequentialLR(optimizer, [rise, fall], [3])


SCHEDULES = {
    "joined": lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.5, 1.0, 3), S.CosineAnnealingLR(o, 7)], [3]),
    "joined lambdas": lambda o: S.SequentialLR(
        o, [S.LambdaLR(o, lambda k: (k + 1) / 3), S.LambdaLR(o, lambda k: 1.0)], [3]
    ),
    "joined polynomial": polynomial_after_linear,
    "cosine to a floor": lambda o: S.CosineAnnealingLR(o, 7, eta_min=1e-5),
    "restarts": lambda o: S.CosineAnnealingWarmRestarts(o, 5),
    "steps": lambda o: S.StepLR(o, 2, 0.5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_torchs_schedules_go_on_likewise(name):
    def made(lr):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        return optimizer, SCHEDULES[name](optimizer)

    ours, theirs = made(5e-5), made(3e-3)
    set_learning_rate(*ours, 3e-3)
    for _ in range(9):
        rates = [one[0].param_groups[0]["lr"] for one in (ours, theirs)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-9)
        for optimizer, schedule in (ours, theirs):
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize("after", [2, 3, 6])
def test_a_part_of_a_sequence_goes_on_from_where_it_is(after):
    def made(lr):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        schedule = polynomial_after_linear(optimizer)
        for _ in range(after):
            optimizer.step()
            schedule.step()
        return optimizer, schedule

    ours, theirs = made(5e-5), made(3e-3)
    set_learning_rate(*ours, 3e-3)
    for _ in range(9 - after):
        rates = [one[0].param_groups[0]["lr"] for one in (ours, theirs)]
        assert rates[0] == pytest.approx(rates[1], rel=1e-9)
        for optimizer, schedule in (ours, theirs):
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize(
    ("make", "end"),
    [
        (lambda o: S.CosineAnnealingLR(o, 7, eta_min=1e-4), 1e-4),
        (lambda o: S.CosineAnnealingWarmRestarts(o, 5, eta_min=1e-4), 1e-4),
        (lambda o: S.SequentialLR(o, [S.LinearLR(o), S.CosineAnnealingLR(o, 7, 1e-4)], [3]), 1e-4),
        (polynomial_after_linear, 1e-5),
    ],
)
def test_a_schedule_that_ends_above_the_new_peak_is_refused_and_left_alone(make, end):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    schedule, before = make(optimizer), optimizer.param_groups[0]["lr"]
    with pytest.raises(RequestError, match=f"ends at {end:g}, not below the predicted learning rate 5e-06"):
        set_learning_rate(optimizer, schedule, 5e-6)
    assert optimizer.param_groups[0]["lr"] == before


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_schedules_with_a_peak_of_their_own_are_refused(name):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5e-5)
    own = {"max_lr": 5e-5, "total_steps": 10} if name == "OneCycleLR" else {"base_lr": 1e-6, "max_lr": 5e-5}
    with pytest.raises(RequestError, match=f"{name} may keep a learning rate of its own"):
        set_learning_rate(optimizer, getattr(S, name)(optimizer, **own, cycle_momentum=False), 3e-3)
    assert optimizer.param_groups[0]["initial_lr"] <= 5e-5
