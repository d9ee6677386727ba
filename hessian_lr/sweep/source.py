"""Many settings' models, data and runs: loaded, found in a folder, and told from strangers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..setting import Setting
from .finished import Finished
from .run import RunResult
from .schedule import Work, by_model
from .wanted import Wanted

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel

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


def assign(
    wanted: Sequence[Wanted], source: Source, folder: Path
) -> tuple[tuple[Work, ...], tuple[str, ...]]:
    """Find each setting's place in ``folder``, and check all of them against their models.

    Returns:
        (the settings' work, in the order of ``wanted``; what a reader should know of the data)

    Raises:
        RequestError: a method, a batch size or rows do not fit a model or its data; all such settings are
            counted.
        HessianLRError: a model or data cannot be loaded.
    """
    from .. import methods
    from ..limits import check_batch_size, check_lengths

    found: dict[tuple[object, ...], Finished] = {}
    works: dict[int, Work] = {}
    notes: list[str] = []
    refused: list[str] = []
    for place in by_model(one.setting for one in wanted):
        setting = wanted[place].setting
        loaded, data = source.model(setting), source.data(setting)
        try:
            methods.check(loaded.model, setting)
            check_batch_size(setting, data)
            long = check_lengths(loaded, data)
        except RequestError as error:
            refused.append(f"{setting.method} at rank {setting.rank}: {error}")
            continue
        kind = (setting.model, setting.data, setting.fields, setting.max_length)
        if kind not in found:
            found[kind] = Finished(folder, data.digest, loaded.fingerprint)
            notes += [f"{setting.data}: {note}" for note in (*data.notes, *long)]
        works[place] = Work(wanted[place], found[kind])
    if refused:
        shown = list(dict.fromkeys(refused))
        more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        raise RequestError(
            f"{len(refused)} of {len(wanted)} settings cannot be run, exclude them: "
            + "; ".join(shown[:_SHOWN])
            + more
        )
    return tuple(works[place] for place in range(len(wanted))), tuple(dict.fromkeys(notes))


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
