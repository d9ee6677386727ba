"""The common model and data of settings that differ in their method, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .. import data, methods, models
from ..data import TaskData
from ..devices import resolve_device
from ..distributed import team
from ..errors import RequestError
from ..limits import check_lengths
from ..methods import method_of
from ..models import LoadedModel
from ..prepare import split_rows
from ..setting import Setting


def check(settings: Sequence[Setting]) -> None:
    """Refuse what can be refused before a model is loaded.

    Raises:
        RequestError: there is no setting, they differ in more than their method, or a method, a device or
            data are not known here.
    """
    if not settings:
        raise RequestError("there is no setting here: at least one is needed")
    first, *others = settings
    for one in others:
        if differing := [n for n, value in vars(one).items() if n != "method" and value != vars(first)[n]]:
            raise RequestError(
                f"settings of one call differ in their method alone, not in {', '.join(differing)}: make a "
                "call for each, or sweep a grid with `hessian-lr sweep`"
            )
    if len({one.method for one in settings}) < len(settings):
        raise RequestError("a method comes twice in one call: settings of one call differ in their method")
    for one in settings:
        method_of(one)
    resolve_device(first.device)
    data.check(first.data, fields=first.fields)


def load(settings: Sequence[Setting], *, quiet: bool) -> tuple[LoadedModel, TaskData]:
    """The settings' model and data; every method and the rows' lengths are checked against the model.

    Args:
        settings: They differ in their method alone (see ``check``).
        quiet: Nothing is said of what has to be fetched.

    Raises:
        RequestError, HessianLRError: they cannot be loaded, or do not fit each other.
    """
    first = settings[0]
    with team().first_here():
        loaded = models.load(first.model, device=first.device, quiet=quiet)
        task = data.load(first.data, loaded.tokenizer, fields=first.fields, max_length=first.max_length)
    for setting in settings:
        methods.check(loaded.model, setting)
    split_rows(first, task.train)
    return loaded, replace(task, notes=(*task.notes, *check_lengths(loaded, task)))
