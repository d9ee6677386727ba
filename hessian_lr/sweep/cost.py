"""What a sweep will take: from finished runs where there are some, else from a few timed steps.

A run takes

    build + overhead + evaluations · evaluation + steps · step

seconds. The adapter is built, and the other three are timed, once for each shape that decides them:
``build`` for a model and method, ``evaluation`` for a model and data, ``step`` for these and a batch
size. Rank, alpha and target modules are taken to make no difference, and neither is the method to a
step. Where runs of one model, data, batch size, method and number of steps are there already, their
median is taken instead.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import HessianLRError
from ..setting import Setting
from . import plan
from .run import RunResult, heldout_batches, precision
from .schedule import Work, by_model
from .source import Source
from .wanted import Standing, Wanted

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel

TIMED_STEPS = 2  # each from one forward pass to the next, so one more step is made
_HARMLESS_LR = 1e-8


@dataclass(frozen=True)
class Cost:
    """What the missing runs take.

    Attributes:
        runs: The fewest and the most runs; they differ where a search decides as it goes.
        seconds: The same of wall time.
        timed: Shapes (model, data, batch size) of which steps were timed.
        finished: Finished runs that told the time of their like.
        notes: Shapes that could not be timed, and why; their time is not in ``seconds``.
    """

    runs: tuple[int, int]
    seconds: tuple[float, float]
    timed: int
    finished: int
    notes: tuple[str, ...]


def estimate(
    works: Sequence[Work],
    finished: Iterable[RunResult],
    source: Source,
    *,
    limit: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Cost:
    """The cost of the runs that ``works`` lack.

    Args:
        works: Whose missing runs.
        finished: Runs that may tell how long their like take.
        source: Loads models and data where steps have to be timed.
        limit: The runs that will be made at most.
        report: Called with the settings looked at and their number.
    """
    told = _seconds(finished)
    notes: list[str] = []
    clock, used = _Clock(), 0
    fewest, most, shortest, longest = 0, 0, 0.0, 0.0
    rates: dict[tuple[Any, ...], tuple[float, float]] = {}
    for index, place in enumerate(by_model(work.wanted.setting for work in works)):
        if report is not None:
            report(index, len(works))
        wanted, now = works[place].wanted, works[place].standing()
        low, high = to_go(wanted, now)
        if limit is not None:
            low, high = min(low, limit - fewest), min(high, limit - most)
        if not high:
            continue
        kind = _kind(wanted.setting)
        if kind not in rates:
            used += len(told.get(kind, ()))
            rates[kind] = (
                (statistics.median(told[kind]), 0.0)
                if kind in told
                else clock.rate(wanted.setting, source, notes)
            )
        run, evaluation = rates[kind]
        first = sum(now.initial_loss(seed) is None for seed in wanted.seeds)
        fewest, most = fewest + low, most + high
        shortest += low * run + min(first, low) * evaluation
        longest += high * run + min(first, high) * evaluation
    return Cost((fewest, most), (shortest, longest), len(clock.steps), used, tuple(notes))


def to_go(wanted: Wanted, now: Standing) -> tuple[int, int]:
    """The fewest and the most runs that are still to be made."""
    missing, done, seeds = len(now.missing), len(now.runs), len(wanted.seeds)
    if wanted.lrs is not None or not missing:
        return missing, missing
    fewest = plan.fewest_points(plan.nearest_point(wanted.start_lr), wanted.stride)
    return max(missing, fewest * seeds - done), max(missing, plan.MAX_POINTS * seeds - done)


def _shape(setting: Setting) -> tuple[Any, ...]:
    """What decides how long a step takes."""
    names = ("model", "device", "dtype", "data", "fields", "max_length", "optimizer", "batch_size")
    return tuple(getattr(setting, name) for name in names)


def _kind(setting: Setting) -> tuple[Any, ...]:
    """What decides how long a run takes."""
    return (*_shape(setting), setting.method, setting.steps)


def _seconds(runs: Iterable[RunResult]) -> dict[tuple[Any, ...], list[float]]:
    found: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        if run.steps == run.setting.steps:  # one that diverged ended early
            found.setdefault(_kind(run.setting), []).append(run.seconds)
    return found


class _Clock:
    """The parts of a run's time, each measured once for what decides it."""

    def __init__(self) -> None:
        self.builds: dict[tuple[Any, ...], float] = {}
        self.evaluations: dict[tuple[Any, ...], float] = {}
        self.steps: dict[tuple[Any, ...], tuple[float, float]] = {}  # (overhead, step)

    def rate(self, setting: Setting, source: Source, notes: list[str]) -> tuple[float, float]:
        """Seconds of a run, and those that evaluating its start adds where nothing has told it yet."""
        import torch

        try:
            self._time(setting, source.model(setting), source.data(setting))
        except (HessianLRError, MemoryError, torch.OutOfMemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            notes.append(
                f"{setting.method} with batch size {setting.batch_size} could not be timed and is left out "
                f"of the cost: {reason}"
            )
            return 0.0, 0.0
        build, evaluation = self.builds[_built(setting)], self.evaluations[_shape(setting)[:-1]]
        overhead, step = self.steps[_shape(setting)]
        return build + overhead + evaluation + setting.steps * step, evaluation

    def _time(self, setting: Setting, loaded: LoadedModel, data: TaskData) -> None:
        from ..curvature.loss import mean_loss
        from ..methods import adapted
        from .trainer import fit

        shape = _shape(setting)
        if shape in self.steps and _built(setting) in self.builds:
            return
        start = time.perf_counter()
        model = adapted(setting, loaded, data)
        self.builds.setdefault(_built(setting), time.perf_counter() - start)
        if shape in self.steps:
            return
        dtype, forwards = precision(setting), []
        handle = model.register_forward_pre_hook(lambda *_: forwards.append(time.perf_counter()))
        few = replace(setting, steps=TIMED_STEPS + 1)
        start = time.perf_counter()
        fit(model, data.train, few, _HARMLESS_LR, dtype=dtype, pad_id=loaded.tokenizer.pad_token_id)
        whole = time.perf_counter() - start
        handle.remove()
        # A loss that is not finite ends the training at its first step.
        step = (forwards[-1] - forwards[0]) / (len(forwards) - 1) if len(forwards) > 1 else whole
        self.steps[shape] = (max(whole - len(forwards) * step, 0.0), step)
        if shape[:-1] not in self.evaluations:
            batches = heldout_batches(loaded, data)
            one = batches[len(batches) // 2]
            start = time.perf_counter()
            mean_loss(model, [one], dtype)
            share = one["input_ids"].numel() / sum(batch["input_ids"].numel() for batch in batches)
            self.evaluations[shape[:-1]] = (time.perf_counter() - start) / share


def _built(setting: Setting) -> tuple[str, str, str]:
    return setting.model, setting.device, setting.method
