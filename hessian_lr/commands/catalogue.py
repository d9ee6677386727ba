"""The command that lists what can be named in a setting."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import unknown_name
from ..files import SCHEMA
from ..setting import OPTIMIZERS
from .options import Output

_CATALOGUE = ("methods", "tasks", "models", "optimizers")


def catalogue(
    output: Output,
    what: Annotated[str | None, typer.Argument(metavar="[methods|tasks|models|optimizers]")] = None,
) -> int:
    """List methods, tasks, models and optimizers."""
    if what is not None and what not in _CATALOGUE:
        raise unknown_name("list", what, _CATALOGUE)

    from . import tables

    everything = _everything()
    chosen = everything if what is None else {what: everything[what]}
    output.write({"schema": SCHEMA, **chosen})
    if output.tables:
        tables.catalogue(chosen)
    return 0


def _everything() -> dict[str, list[dict[str, Any]]]:
    """What can be named in a setting, list by list."""
    from ..data import TASKS
    from ..methods import METHODS
    from ..models import ALIASES

    methods = [
        {"name": m.name, "summary": m.summary, "source": m.source, "zero_b": m.zero_b}
        for m in METHODS.values()
    ]
    return {
        "methods": methods,
        "tasks": [{"name": name, "summary": text} for name, text in TASKS.items()],
        "models": [{"name": name, "summary": text} for name, text in ALIASES.items()],
        "optimizers": [{"name": name} for name in OPTIMIZERS],
    }
