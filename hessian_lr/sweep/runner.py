"""A sweep over learning rates and seeds that survives being killed: one file a finished run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HessianLRError, RequestError
from ..records import Record
from ..setting import Setting
from . import plan
from .engine import Engine, Local
from .finished import Finished, writable
from .run import RunResult
from .schedule import Work, make
from .wanted import Wanted, complete_runs, mean_final_loss

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel

#: Called as ``schedule.Report`` is, and once at the end, with the runs done, the runs planned so far (an
#: automatic sweep plans on as it goes), the learning rate at hand, and the last run's final loss.
Progress = Callable[[int, int, float, float | None], None]


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


def sweep(
    setting: Setting,
    loaded: LoadedModel,
    data: TaskData,
    *,
    start_lr: float,
    stride: int = plan.STRIDE,
    lrs: Sequence[float] | None = None,
    seeds: Sequence[int],
    out: Path,
    progress: Progress | None = None,
    engine: Engine | None = None,
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
        stride: Grid points between the learning rates of the search.
        lrs: Exactly these learning rates instead of a search.
        seeds: Seeds of initialization and data order.
        out: Folder of the run files; made if missing.
        progress: See ``Progress``.
        engine: Trains the runs; None: this process.

    Raises:
        RequestError: a learning rate or a seed is out of range, or the method does not fit the
            model.
        HessianLRError: ``out`` cannot be written (found before any training), or a run failed.
    """
    from .. import methods

    work = _work(setting, loaded, data, start_lr=start_lr, stride=stride, lrs=lrs, seeds=seeds, out=out)
    methods.check(loaded.model, setting)
    writable(work.finished.folder)
    there = len(work.standing().runs)

    def report(made: int, planned: int, _: Setting, lr: float, last: float | None) -> None:
        if progress is not None:
            progress(there + made, there + planned, lr, last)

    engine = engine or Local(_Given(loaded, data))
    known = len(engine.notes)
    for failure in make([work], engine, report=report).values():
        raise failure
    now = work.standing()
    if now.missing:
        raise HessianLRError(
            f"the engine ended with {len(now.missing)} runs of {setting.method} not made: it had no room for "
            "them; what is finished is kept: the same call goes on"
        )
    runs = now.runs
    if progress is not None:
        progress(len(runs), len(runs), runs[-1].lr, runs[-1].final_loss)
    return Sweep(setting, runs, censored(runs), (*work.finished.notes, *engine.notes[known:]))


def finished_runs(setting: Setting, loaded: LoadedModel, data: TaskData, **asked: Any) -> Sweep:
    """What there is of a sweep that did not end; its best may lie beyond.

    Args:
        setting, loaded, data: As for ``sweep``.
        asked: Likewise ``start_lr``, ``lrs``, ``seeds`` and ``out``.
    """
    work = _work(setting, loaded, data, stride=plan.STRIDE, **asked)
    return Sweep(setting, work.standing().runs, censored=True, notes=tuple(work.finished.notes))


def _work(
    setting: Setting,
    loaded: LoadedModel,
    data: TaskData,
    *,
    start_lr: float,
    stride: int,
    lrs: Sequence[float] | None,
    seeds: Sequence[int],
    out: Path,
) -> Work:
    seeded, fixed = check_plan(setting, lrs, seeds)
    wanted = Wanted(setting, tuple(one.seed for one in seeded), fixed, start_lr, stride)
    return Work(wanted, Finished(Path(out) / "runs", data.digest, loaded.fingerprint))


@dataclass(frozen=True)
class _Given:
    """The one model and data that there are."""

    loaded: LoadedModel
    task: TaskData

    def model(self, _: Setting) -> LoadedModel:
        return self.loaded

    def data(self, _: Setting) -> TaskData:
        return self.task


def censored(runs: Sequence[RunResult]) -> bool:
    """Whether the best learning rate of some runs may lie beyond them (see ``Sweep.censored``)."""
    losses = {lr: mean_final_loss(group) for lr, group in complete_runs(runs).items()}
    return plan.at_edge(losses) or not math.isfinite(min(losses.values()))


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
