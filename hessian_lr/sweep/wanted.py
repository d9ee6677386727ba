"""The runs that a setting is to get, and how far they have got."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..setting import Setting
from . import plan
from .run import RunResult

#: Gives the finished run of a setting (its seed included) at a learning rate, or None.
Find = Callable[[Setting, float], RunResult | None]


@dataclass(frozen=True)
class Wanted:
    """The runs that one setting is to get.

    Attributes:
        setting: The setting; its own seed plays no part.
        seeds: Seeds to run at each learning rate, ascending.
        lrs: Exactly these learning rates, ascending; None: search for the best one.
        start_lr: Where a search starts (see ``sweep.plan``).
        stride: Grid points between the learning rates of a search.
    """

    setting: Setting
    seeds: tuple[int, ...]
    lrs: tuple[float, ...] | None
    start_lr: float
    stride: int = plan.STRIDE

    def standing(self, find: Find) -> Standing:
        """What of it is there, and what has to be run next; a search goes on from what is there."""
        seeded = [dataclasses.replace(self.setting, seed=seed) for seed in self.seeds]
        start = plan.nearest_point(self.start_lr) if self.lrs is None else 0
        groups: dict[float, tuple[RunResult, ...]] = {}
        missing: list[tuple[Setting, float]] = []
        pending = self.lrs or _rates(plan.next_points(start, {}, self.stride))
        while pending:
            for lr in pending:
                found = [(one, find(one, lr)) for one in seeded]
                missing += [(one, lr) for one, run in found if run is None]
                groups[lr] = tuple(run for _, run in found if run is not None)
            if self.lrs is not None or missing:
                break
            losses = {plan.nearest_point(lr): mean_final_loss(runs) for lr, runs in groups.items()}
            pending = _rates(plan.next_points(start, losses, self.stride))
        return Standing(tuple(run for lr in sorted(groups) for run in groups[lr]), tuple(missing))


@dataclass(frozen=True)
class Standing:
    """How far a setting's runs have got.

    Attributes:
        runs: The finished ones, ascending by learning rate, then by seed.
        missing: Setting and learning rate of those to run next, in the order to run them. None of them
            waits for another; a search may want more once they are there.
    """

    runs: tuple[RunResult, ...]
    missing: tuple[tuple[Setting, float], ...]

    def initial_loss(self, seed: int) -> float | None:
        """The loss before training, which no learning rate changes, if a run of this seed has told it."""
        return next((run.initial_loss for run in self.runs if run.setting.seed == seed), None)


def complete_runs(runs: Sequence[RunResult]) -> dict[float, tuple[RunResult, ...]]:
    """The runs by learning rate, ascending, of those learning rates that were run with every seed.

    A mean over fewer seeds is not comparable with the others.
    """
    seeds = {run.setting.seed for run in runs}
    grouped: dict[float, list[RunResult]] = {}
    for run in runs:
        grouped.setdefault(run.lr, []).append(run)
    return {
        lr: tuple(sorted(group, key=lambda run: run.setting.seed))
        for lr, group in sorted(grouped.items())
        if {run.setting.seed for run in group} == seeds
    }


def mean_final_loss(runs: Sequence[RunResult]) -> float:
    """Mean final loss of runs that differ in their seed; +inf if one diverged."""
    if any(run.diverged or run.final_loss is None for run in runs):
        return math.inf
    return math.fsum(run.final_loss for run in runs if run.final_loss is not None) / len(runs)


def _rates(points: Sequence[int]) -> tuple[float, ...]:
    return tuple(plan.learning_rate(point) for point in points)
