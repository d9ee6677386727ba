"""Commands that take groups of options, each group defined once."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any


class Interrupted(Exception):
    """Ctrl-C, with what to tell about it."""


def takes(**groups: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of each group beside its own.

    A group is a function whose parameters are options; the command gets what it returns, under the
    group's name.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in _parameters(command) if p.name not in groups]
        members = {name: _parameters(group) for name, group in groups.items()}

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            made = {
                name: groups[name](**{p.name: values.pop(p.name) for p in parameters})
                for name, parameters in members.items()
            }
            try:
                return command(**values, **made)
            except KeyboardInterrupt:
                # Caught here because what becomes of it above depends on typer's version.
                raise Interrupted("interrupted") from None

        # Arguments and a command's own options come first in its help.
        everything = [*own, *(p for parameters in members.values() for p in parameters)]
        run.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in everything}
        return run

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(function, include_extras=True)
    return [
        p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(function).parameters.values()
    ]
