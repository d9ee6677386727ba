"""The two ways a command can fail, and the exit status that belongs to each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HessianLRError(Exception):
    """The request was sound but the work failed: exit status 1."""

    exit_status = 1


class RequestError(HessianLRError, ValueError):
    """The request itself was wrong (a bad name, value, file): exit status 2."""

    exit_status = 2


class NonFiniteError(HessianLRError, ArithmeticError):
    """A loss, gradient or product was NaN or infinite; no number may follow from it."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """The error for a name that is not in a registry, with the nearest name that is."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return RequestError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(choices)}.")
