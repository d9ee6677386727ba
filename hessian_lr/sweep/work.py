"""Many settings' runs: how far they have got, and making those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HessianLRError, RequestError
from ..setting import Setting
from .finished import Finished
from .run import RunResult, train_once
from .runner import Standing, Wanted

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel

#: Called before every run: runs made, runs to make this time (a search may want more as it goes), the
#: setting and learning rate at hand, and the last run's final loss.
Report = Callable[[int, int, Setting, float, float | None], None]

_SHOWN = 3


class Source:
    """Loads models and data. The last model and its data are kept, and no other: two may not fit."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._model: tuple[tuple[str, str], LoadedModel] | None = None
        self._data: dict[tuple[object, ...], TaskData] = {}

    def model(self, setting: Setting) -> LoadedModel:
        """The setting's model.

        Raises:
            RequestError, HessianLRError: it cannot be loaded.
        """
        from ..models import load

        wanted = (setting.model, setting.device)
        if self._model is None or self._model[0] != wanted:
            self._model = None  # gone before the next one comes
            self._data.clear()
            self._model = (wanted, load(setting.model, device=setting.device, quiet=self._quiet))
        return self._model[1]

    def data(self, setting: Setting) -> TaskData:
        """The setting's data as its model's tokenizer reads them.

        Raises:
            RequestError, HessianLRError: they cannot be loaded.
        """
        from ..data import load

        tokenizer = self.model(setting).tokenizer
        wanted = (setting.data, setting.fields, setting.max_length)
        if wanted not in self._data:
            self._data[wanted] = load(
                setting.data, tokenizer, fields=setting.fields, max_length=setting.max_length
            )
        return self._data[wanted]


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


def assign(
    wanted: Sequence[Wanted], source: Source, folder: Path
) -> tuple[tuple[Work, ...], tuple[str, ...]]:
    """Find each setting's place in ``folder``, and check all of them against their models.

    Returns:
        (the settings' work, in the order of ``wanted``; what a reader should know of the data)

    Raises:
        RequestError: a method does not fit its model; all that do not are counted.
        HessianLRError: a model or data cannot be loaded.
    """
    from .. import methods

    found: dict[tuple[object, ...], Finished] = {}
    works: dict[int, Work] = {}
    notes: list[str] = []
    refused: list[str] = []
    for place in by_model(one.setting for one in wanted):
        setting = wanted[place].setting
        loaded, data = source.model(setting), source.data(setting)
        try:
            methods.check(loaded.model, setting)
        except RequestError as error:
            refused.append(f"{setting.method} at rank {setting.rank}: {error}")
        kind = (setting.model, setting.data, setting.fields, setting.max_length)
        if kind not in found:
            found[kind] = Finished(folder, data.digest, loaded.fingerprint)
            notes += [f"{setting.data}: {note}" for note in data.notes]
        works[place] = Work(wanted[place], found[kind])
    if refused:
        shown = list(dict.fromkeys(refused))
        more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        raise RequestError(
            f"{len(refused)} of {len(wanted)} settings cannot be built, exclude them: "
            + "; ".join(shown[:_SHOWN])
            + more
        )
    return tuple(works[place] for place in range(len(wanted))), tuple(dict.fromkeys(notes))


def by_model(settings: Iterable[Setting]) -> list[int]:
    """The places of the settings in an order that loads each model once."""
    listed = [(setting.model, setting.device) for setting in settings]
    first = {model: place for place, model in reversed(list(enumerate(listed)))}
    return sorted(range(len(listed)), key=lambda place: (first[listed[place]], place))


def make(
    works: Sequence[Work], source: Source, *, limit: int | None = None, report: Report | None = None
) -> dict[Setting, str]:
    """Make the runs that are missing, each written at once.

    A run that fails ends its setting's runs, not those of the others.

    Args:
        works: Whose runs.
        source: Loads their models and data.
        limit: Make at most so many; None: all.
        report: See ``Report``.

    Returns:
        The settings that failed, and why.

    Raises:
        HessianLRError: the folder cannot be written.
    """
    failed: dict[Setting, str] = {}
    made, last = 0, None
    waiting = [len(work.standing().missing) for work in works]
    for place in by_model(work.wanted.setting for work in works):
        work = works[place]
        setting = work.wanted.setting
        while setting not in failed and (now := work.standing()).missing:
            initial = {seed: now.initial_loss(seed) for seed in work.wanted.seeds}
            for index, (one, lr) in enumerate(now.missing):
                waiting[place] = len(now.missing) - index
                if made == limit:
                    return failed
                if report is not None:
                    planned = made + sum(waiting)
                    report(made, planned if limit is None else min(limit, planned), setting, lr, last)
                try:
                    run = train_once(one, lr, source.model(one), source.data(one), initial[one.seed])
                except (HessianLRError, MemoryError) as error:
                    failed[setting] = str(error) or type(error).__name__
                    break
                work.finished.add(run)
                initial[one.seed], last = run.initial_loss, run.final_loss
                made += 1
        waiting[place] = 0
    return failed


def strangers(works: Sequence[Work], folder: Path) -> tuple[list[str], int]:
    """What else lies among the runs: copies of one under another name, and runs of other settings.

    Returns:
        (a note for each copy, number of other runs)
    """
    keys: set[str] = set()
    for work in works:
        now = work.standing()
        known = [(run.setting, run.lr) for run in now.runs]
        keys |= {work.finished.path(*one).stem for one in (*known, *now.missing)}
    copies, others = [], 0
    for path in sorted(folder.glob("*.json")):
        if path.stem in keys:
            continue
        try:
            key = RunResult.read(path).key
        except RequestError:
            continue  # not a run at all
        if key in keys:
            copies.append(f"{path} is a copy of run {key} and does not count; only {key}.json does")
        else:
            others += 1
    return copies, others
