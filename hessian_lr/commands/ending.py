"""How a command ends that does not end well: its exit status, and what is said of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ..errors import HessianLRError, RankError, hint, shown
from .option_groups import Interrupted

INTERRUPTED, TERMINATED = (128 + number for number in (signal.SIGINT, signal.SIGTERM))
# The base of all complaints about a command line; which package has it depends on typer's version.
_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster sends it to a job whose time is up: what Ctrl-C cleans up, this does."""


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Within it, SIGTERM ends a command as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise _Terminated("terminated")

    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def resumable(out: str) -> Iterator[None]:
    """Within it, Ctrl-C tells that what is finished stays in the folder ``out``.

    Raises:
        Interrupted: in the place of ``KeyboardInterrupt``.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; what is finished is kept in {out}: the same command goes on"
        ) from None


def explained(error: BaseException) -> tuple[int, str]:
    """The exit status that belongs to an error, and what to say about it."""
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        # What a command tells of an interruption is raised while that is handled.
        by_signal = isinstance(error, _Terminated) or isinstance(error.__context__, _Terminated)
        return TERMINATED if by_signal else INTERRUPTED, str(error) or "interrupted"
    if isinstance(error, (HessianLRError, RankError)):
        return getattr(error, "exit_status", 1), f"error: {error}"
    if isinstance(error, _USAGE):
        return 2, f"error: {_usage(error)}"
    told = shown(f"{type(error).__name__}: {error}")
    return 1, f"error: unexpected {told} (--debug shows the traceback)"


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    said = error.format_message()
    # The nearest of the command's own options: each typer suggests others, or none.
    if type(error).__name__ == "NoSuchOption" and context is not None:
        options = [name for option in context.command.params for name in option.opts]
        said = f"unknown option {error.option_name!r}.{hint(error.option_name, options)}"
    command = context.command_path if context is not None else "hessian-lr"
    return f"{said} (`{command} --help` shows what can be given)"
