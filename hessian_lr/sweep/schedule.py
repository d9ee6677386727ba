"""Many settings' runs, handed to an engine as it has room and written as they come back."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

from ..errors import HessianLRError
from ..setting import Setting
from .engine import Engine, Task
from .finished import Finished
from .run import RunResult
from .wanted import Standing, Wanted

#: Called when a run begins, and when one ends while others are under way: runs made, runs to make this
#: time (a search may want more as it goes), a setting and learning rate, and the last run's final loss.
Report = Callable[[int, int, Setting, float, float | None], None]


@dataclass(frozen=True)
class Work:
    """A setting's runs and where they are kept.

    Attributes:
        wanted: The runs.
        finished: Those of its model and data that are there; other settings share it.
    """

    wanted: Wanted
    finished: Finished

    def standing(self) -> Standing:
        """How far it has got."""
        return self.wanted.standing(self.finished.find)


def by_model(settings: Iterable[Setting]) -> list[int]:
    """The places of the settings in an order that loads each model once."""
    listed = [(setting.model, setting.device) for setting in settings]
    first = {model: place for place, model in reversed(list(enumerate(listed)))}
    return sorted(range(len(listed)), key=lambda place: (first[listed[place]], place))


def make(
    works: Sequence[Work], engine: Engine, *, limit: int | None = None, report: Report | None = None
) -> dict[Setting, Exception]:
    """Make the runs that are missing, each written at once, and only here.

    All that wait for no other are handed out, over all settings, as long as the engine has room; a
    search goes on when all of its own are back. A run that fails ends its setting's runs, but for
    those under way, and not those of the others.

    Args:
        works: Whose runs.
        engine: Trains them.
        limit: Make at most so many; None: all.
        report: See ``Report``.

    Returns:
        The settings that failed, and why.

    Raises:
        HessianLRError: the folder cannot be written, or the engine cannot go on.
    """
    lines = [_Line(works[place]) for place in by_model(work.wanted.setting for work in works)]
    failed: dict[Setting, Exception] = {}
    under_way: dict[str, tuple[_Line, Task]] = {}
    started = made = 0
    last: float | None = None

    def tell(task: Task) -> None:
        if report is not None:
            planned = made + len(under_way) + sum(len(line.waiting) for line in lines)
            report(made, planned if limit is None else min(limit, planned), task.setting, task.lr, last)

    while True:
        while engine.room and started != limit and (found := _next(lines, under_way)):
            line, key, task = found
            under_way[key] = line, task
            started += 1
            tell(task)
            engine.start(task)
        if not under_way:
            return failed
        outcome = engine.wait()
        if outcome is None:
            continue
        task, run = outcome
        key = next(key for key, (_, one) in under_way.items() if one == task)
        line, _ = under_way.pop(key)
        line.under_way -= 1
        if isinstance(run, RunResult) and run.key != key:
            run = _other_inputs(task)
        if isinstance(run, RunResult):
            line.add(run)
            made, last = made + 1, run.final_loss
        else:
            failed.setdefault(line.work.wanted.setting, run)
            line.end()
        if under_way:
            tell(task)


class _Line:
    """A setting's runs that wait to be handed out.

    Attributes:
        work: Whose.
        waiting: Setting and learning rate of each, in order.
        under_way: Number of those that the engine has.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        now = work.standing()
        self.waiting = list(now.missing)
        self.under_way = 0
        self._initial = {seed: now.initial_loss(seed) for seed in work.wanted.seeds}

    def next(self, busy: Container[str]) -> tuple[str, Task] | None:
        """The first that is not under way as another setting's: its key, and what to train."""
        place = 0
        while place < len(self.waiting):
            setting, lr = self.waiting[place]
            key = self.work.finished.path(setting, lr).stem
            if key in busy:
                place += 1
                continue
            del self.waiting[place]
            if self.work.finished.find(setting, lr) is None:
                self.under_way += 1
                return key, Task(setting, lr, self._initial[setting.seed])
            self._go_on()  # it has come, of another setting
        return None

    def add(self, run: RunResult) -> None:
        """Write a run, and go on with the search when it was the last that was waited for."""
        self.work.finished.add(run)
        self._initial[run.setting.seed] = run.initial_loss
        self._go_on()

    def end(self) -> None:
        """Hand out no more."""
        self.waiting = []

    def _go_on(self) -> None:
        if not self.waiting and not self.under_way:
            self.waiting = list(self.work.standing().missing)


def _next(lines: Sequence[_Line], busy: Container[str]) -> tuple[_Line, str, Task] | None:
    for line in lines:
        if (found := line.next(busy)) is not None:
            return line, *found
    return None


def _other_inputs(task: Task) -> HessianLRError:
    return HessianLRError(
        f"a worker read another model {task.setting.model} or other data {task.setting.data} than this "
        "machine; give every node the same files (a shared disk, or one version of the hub's model)"
    )
