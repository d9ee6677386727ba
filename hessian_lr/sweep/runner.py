"""A sweep over learning rates and seeds that survives being killed: one file a finished run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..records import Record
from ..setting import Setting
from . import plan
from .finished import Finished, writable
from .run import RunResult, train_once

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel

#: Called before every run that is made and once at the end with the runs done, the runs planned so far (an
#: automatic sweep plans on as it goes), the learning rate at hand, and the last run's final loss.
Progress = Callable[[int, int, float, float | None], None]

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
    """

    setting: Setting
    seeds: tuple[int, ...]
    lrs: tuple[float, ...] | None
    start_lr: float

    def standing(self, find: Find) -> Standing:
        """What of it is there, and what has to be run next; a search goes on from what is there."""
        seeded = [dataclasses.replace(self.setting, seed=seed) for seed in self.seeds]
        start = plan.nearest_point(self.start_lr) if self.lrs is None else 0
        groups: dict[float, tuple[RunResult, ...]] = {}
        missing: list[tuple[Setting, float]] = []
        pending = self.lrs or _rates(plan.next_points(start, {}))
        while pending:
            for lr in pending:
                found = [(one, find(one, lr)) for one in seeded]
                missing += [(one, lr) for one, run in found if run is None]
                groups[lr] = tuple(run for _, run in found if run is not None)
            if self.lrs is not None or missing:
                break
            losses = {plan.nearest_point(lr): mean_final_loss(runs) for lr, runs in groups.items()}
            pending = _rates(plan.next_points(start, losses))
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


@dataclass(frozen=True)
class Sweep(Record):
    """All runs of one setting over learning rates and seeds.

    Attributes:
        setting: The setting; its own seed plays no part, each run's setting has its seed.
        runs: Ascending by learning rate, then by seed.
        censored: The best mean loss lies at the lowest or highest learning rate, or every learning
            rate diverged: the best one may lie beyond.
        notes: What a reader should know, such as run files that were damaged.
    """

    setting: Setting
    runs: tuple[RunResult, ...]
    censored: bool
    notes: tuple[str, ...] = ()


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


def sweep(
    setting: Setting,
    loaded: LoadedModel,
    data: TaskData,
    *,
    start_lr: float,
    lrs: Sequence[float] | None = None,
    seeds: Sequence[int],
    out: Path,
    progress: Progress | None = None,
) -> Sweep:
    """Train a setting at several learning rates, with every seed at each.

    Every finished run is a file ``out/runs/<key>.json``, written at once and atomically. A run
    whose file is there is read, not repeated, so a killed sweep goes on where it stopped, and
    two sweeps into one folder share their runs.

    Args:
        setting: What to train; its seed is replaced by each of ``seeds``.
        loaded: The model of the setting.
        data: The data of the setting.
        start_lr: Where the search for the best learning rate starts (see ``sweep.plan``).
        lrs: Exactly these learning rates instead of a search.
        seeds: Seeds of initialization and data order.
        out: Folder of the run files; made if missing.
        progress: See ``Progress``.

    Raises:
        RequestError: a learning rate or seed is out of range, or the method does not fit the model.
        HessianLRError: ``out`` cannot be written (found before any training), or a run failed.
    """
    from .. import methods

    seeded, fixed = check_plan(setting, lrs, seeds)
    wanted = Wanted(setting, tuple(one.seed for one in seeded), fixed, start_lr)
    methods.check(loaded.model, setting)
    finished = Finished(writable(Path(out) / "runs"), data.digest, loaded.fingerprint)

    last: RunResult | None = None
    while (now := wanted.standing(finished.find)).missing:
        done, initial = len(now.runs), {seed: now.initial_loss(seed) for seed in wanted.seeds}
        for index, (one, lr) in enumerate(now.missing):
            if progress is not None:
                progress(done + index, done + len(now.missing), lr, last.final_loss if last else None)
            last = train_once(one, lr, loaded, data, initial[one.seed])
            initial[one.seed] = last.initial_loss
            finished.add(last)
    last = last or now.runs[-1]
    if progress is not None:
        progress(len(now.runs), len(now.runs), last.lr, last.final_loss)
    return Sweep(setting, now.runs, censored(now.runs), tuple(finished.notes))


def censored(runs: Sequence[RunResult]) -> bool:
    """Whether the best learning rate of some runs may lie beyond them (see ``Sweep.censored``)."""
    losses = {lr: mean_final_loss(group) for lr, group in complete_runs(runs).items()}
    return plan.at_edge(losses) or not math.isfinite(min(losses.values()))


def _rates(points: Sequence[int]) -> tuple[float, ...]:
    return tuple(plan.learning_rate(point) for point in points)


def check_plan(
    setting: Setting, lrs: Sequence[float] | None, seeds: Sequence[int]
) -> tuple[list[Setting], tuple[float, ...] | None]:
    """The setting with each seed, and the learning rates in order (None: to be searched).

    Raises:
        RequestError: a learning rate or seed is out of range, or there is none.
    """
    return _with_seeds(setting, seeds), None if lrs is None else _checked_rates(lrs)


def _with_seeds(setting: Setting, seeds: Sequence[int]) -> list[Setting]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise RequestError(f"a sweep needs at least one seed, each named once, not {list(seeds)}")
    return [dataclasses.replace(setting, seed=seed) for seed in sorted(seeds)]


def _checked_rates(lrs: Sequence[float]) -> tuple[float, ...]:
    bad = [lr for lr in lrs if not (math.isfinite(lr) and lr > 0)]
    if bad or not lrs:
        raise RequestError(f"learning rates must be positive numbers, at least one, not {bad or 'none'}")
    return tuple(sorted({float(lr) for lr in lrs}))
