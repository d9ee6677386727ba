"""Another peak learning rate for an optimizer and its schedule, before training or after a resume."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LambdaLR

from ..errors import RequestError

# Schedules that multiply what they find in the groups or in ``base_lrs``, and keep no peak elsewhere.
_PROPORTIONAL = (
    lr_scheduler.ConstantLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
    lr_scheduler.ExponentialLR,
    LambdaLR,
    lr_scheduler.LinearLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.ReduceLROnPlateau,
    lr_scheduler.StepLR,
)


def adamw(optimizer: Any) -> torch.optim.AdamW:
    """The AdamW inside what accelerate made of it.

    Raises:
        RequestError: it is another optimizer, or its parameters have more than one learning rate.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, torch.optim.AdamW):
        raise RequestError(
            f"the learning rate is predicted for AdamW, but this run has {type(inner).__module__}."
            f"{type(inner).__name__}: use optim='adamw_torch', or remove the callback and set learning_rate "
            "yourself"
        )
    peaks = sorted({_peak(group) for group in inner.param_groups})
    if len(peaks) > 1:
        raise RequestError(
            f"the optimizer has groups of different learning rates ({', '.join(f'{p:g}' for p in peaks)}), "
            "as LoRA+ has; one learning rate is predicted, for one group's"
        )
    return inner


def set_learning_rate(
    optimizer: torch.optim.AdamW, scheduler: Any, lr: float, floor: float | None = None
) -> float:
    """Make ``lr`` the peak of the optimizer's groups and of the schedule's ``base_lrs``.

    The present step's share of the peak stays: warm-up, cosine and the like go on from there as if they
    had been made with ``lr``.

    Args:
        optimizer, scheduler: As the Trainer has made them.
        lr: The new peak.
        floor: ``min_lr``, a learning rate that the schedule was given to end at. It became a share of the old
            peak when that was made, and is made one of the new. What a polynomial ends at is known to it.

    Returns:
        The peak before.

    Raises:
        RequestError: the schedule is of a kind that may keep a peak of its own, or does not
            end below ``lr``.
    """
    schedule = getattr(scheduler, "scheduler", scheduler)
    before = _peak(optimizer.param_groups[0])
    parts = list(_parts(schedule))
    if strange := [part for part in parts if not isinstance(part, _PROPORTIONAL)]:
        raise RequestError(
            f"the schedule {type(strange[0]).__name__} may keep a learning rate of its own, and would go "
            "back to it: use one of the Trainer's (lr_scheduler_type), or remove the callback, predict first "
            "(`hessian-lr predict --peft-config FOLDER`) and make the schedule with that"
        )
    if (end := max(_end(part, floor) for part in parts)) >= lr:
        raise RequestError(
            f"the schedule ends at {end:g}, not below the predicted learning rate {lr:.3g}: set a smaller "
            "min_lr or lr_end in lr_scheduler_kwargs, or a smaller eta_min of torch's cosines"
        )
    for part in parts:
        if isinstance(part, LambdaLR):
            part.lr_lambdas = [_from_peak(share, lr, floor) for share in part.lr_lambdas]
    present = _present(schedule)
    for index, group in enumerate(optimizer.param_groups):
        if isinstance(present, LambdaLR):
            share = present.lr_lambdas[index](present.last_epoch)
        else:
            share = group["lr"] / before if before else 1.0
        group["initial_lr"], group["lr"] = lr, lr * share
    optimizer.defaults["lr"] = lr
    for part in parts:
        if hasattr(part, "base_lrs"):
            part.base_lrs = [lr] * len(optimizer.param_groups)
    if hasattr(schedule, "_last_lr"):
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
    return before


def stays_up(scheduler: Any, steps: int) -> bool:
    """Whether a schedule is as high at the end of ``steps`` as halfway, or falls only if evaluations ask."""
    schedule = getattr(scheduler, "scheduler", scheduler)
    if isinstance(schedule, lr_scheduler.SequentialLR):
        return stays_up(schedule._schedulers[-1], steps - schedule._milestones[-1])
    if isinstance(schedule, lr_scheduler.ChainedScheduler):
        return all(stays_up(part, steps) for part in schedule._schedulers)
    if isinstance(schedule, LambdaLR):
        return all(share(steps) == share(steps // 2) > 0 for share in schedule.lr_lambdas)
    if isinstance(schedule, (lr_scheduler.ConstantLR, lr_scheduler.ReduceLROnPlateau)):
        return True
    # Those of torch's that know a step's learning rate without the one before.
    if not hasattr(schedule, "_get_closed_form_lr"):
        return False
    halfway = _rates(schedule, steps // 2)
    # At every step: what goes down and up may be as high at the end for having come back.
    later = range(steps // 2 + 1, steps + 1)
    return any(halfway) and all(_rates(schedule, step) == halfway for step in later)


def _rates(schedule: Any, step: int) -> list[float]:
    """Each group's learning rate at a step."""
    then = copy.copy(schedule)
    then.last_epoch = step
    return list(then._get_closed_form_lr())


def _from_peak(share: Any, lr: float, floor: float | None) -> Any:
    """A schedule's share of its peak by step, as transformers would have made it for the peak ``lr``."""
    if not isinstance(share, partial):
        return share
    known = share.keywords
    changed = {}
    if "lr_init" in known:
        changed["lr_init"] = lr
    if floor is not None and "min_lr_rate" in known:
        changed["min_lr_rate"] = floor / lr
    return partial(share.func, *share.args, **known | changed)


def _end(part: Any, floor: float | None) -> float:
    """The learning rate that a schedule goes to whatever its peak; 0: it has none."""
    told = [share.keywords for share in getattr(part, "lr_lambdas", ()) if isinstance(share, partial)]
    ends = [max(floor or 0.0, known.get("lr_end", 0.0)) for known in told]
    return max([float(getattr(part, "eta_min", 0.0)), *ends])


def _present(schedule: Any) -> Any:
    """The part of a schedule whose turn it is."""
    while isinstance(schedule, lr_scheduler.SequentialLR):
        schedule = schedule._schedulers[bisect_right(schedule._milestones, schedule.last_epoch)]
    return schedule


def _parts(schedule: Any) -> Iterator[Any]:
    """A schedule, or those that one is put together from."""
    joined = isinstance(schedule, (lr_scheduler.SequentialLR, lr_scheduler.ChainedScheduler))
    for part in schedule._schedulers if joined else ():
        yield from _parts(part)
    if not joined:
        yield schedule


def _peak(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
