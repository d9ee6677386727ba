"""A sweep over learning rates and seeds that survives being killed: one file a finished run."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HessianLRError, RequestError
from ..records import Record
from ..setting import Setting
from . import plan
from .run import RunResult, run_key, train_once

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel

#: Called before every run and once at the end with the runs done, the runs planned so far (an
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
    start = plan.nearest_point(start_lr) if fixed is None else 0
    methods.check(loaded.model, setting)
    folder = _writable(Path(out) / "runs")

    notes: list[str] = []
    groups: dict[float, tuple[RunResult, ...]] = {}
    initial: dict[int, float] = {}
    done, last = 0, None
    pending = fixed if fixed is not None else _rates(plan.next_points(start, {}))
    while pending:
        planned = done + len(pending) * len(seeded)
        for lr in pending:
            runs = []
            for one in seeded:
                if progress is not None:
                    progress(done, planned, lr, last)
                runs.append(_run(one, lr, loaded, data, folder, notes, initial.get(one.seed)))
                initial[one.seed] = runs[-1].initial_loss
                done, last = done + 1, runs[-1].final_loss
            groups[lr] = tuple(runs)
        if fixed is None:
            pending = _rates(
                plan.next_points(start, {plan.nearest_point(lr): loss for lr, loss in _means(groups)})
            )
        else:
            pending = ()
    if progress is not None:
        progress(done, done, lr, last)

    losses = dict(_means(groups))
    return Sweep(
        setting=setting,
        runs=tuple(run for lr in sorted(groups) for run in sorted(groups[lr], key=lambda r: r.setting.seed)),
        censored=plan.at_edge(losses) or not math.isfinite(min(losses.values())),
        notes=tuple(notes),
    )


def _run(
    setting: Setting,
    lr: float,
    loaded: LoadedModel,
    data: TaskData,
    folder: Path,
    notes: list[str],
    initial_loss: float | None,
) -> RunResult:
    """The run of this key: from its file, or trained and written."""
    key = run_key(setting, lr, data.digest, loaded.fingerprint)
    path = folder / f"{key}.json"
    if path.exists():
        try:
            stored = RunResult.read(path)
            if stored.key == key and stored.lr == lr and stored.setting.seed == setting.seed:
                # Where the model and data lay, and on what device it ran, may differ: only the key counts.
                return dataclasses.replace(stored, setting=setting)
            notes.append(f"{path} described another run (key {stored.key!r}); it was run again")
        except RequestError as error:
            notes.append(f"{path} was damaged and was run again: {error}")
    result = train_once(setting, lr, loaded, data, initial_loss)
    result.write(path)
    return result


def _means(groups: dict[float, tuple[RunResult, ...]]) -> list[tuple[float, float]]:
    return [(lr, mean_final_loss(runs)) for lr, runs in groups.items()]


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


def _writable(folder: Path) -> Path:
    """The folder, made if missing, and proven writable: found now, not after the first hour of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(b"x")
    except OSError as error:
        raise HessianLRError(
            f"cannot write to {folder}: {error.strerror or error}; name another folder with --out"
        ) from error
    return folder
