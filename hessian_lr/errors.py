"""The ways a command can fail, and the exit status that belongs to each."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

# What is secret: the name and password in an address, tokens by their form or by their parameter's name.
_SECRETS = (
    (re.compile(r"(\w://)[^/\s@]+@"), r"\1…@"),
    (re.compile(r"\bhf_\w{8,}"), "hf_…"),
    (re.compile(r"(?i)(bearer\s+|(?:token|secret|password|signature|api_?key)=)[^\s&'\"]+"), r"\1…"),
)
_LONGEST = 4_000  # that is still a message
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # the environment's, whatever form they have


def shown(text: str) -> str:
    """``text`` as it may be shown: in one line, without secrets, and with nothing that a terminal obeys."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text):,} characters)"
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    for name in _TOKENS:
        if token := os.environ.get(name, "").strip():
            text = text.replace(token, "…")
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text)


class HessianLRError(Exception):
    """The request was sound but the work failed: exit status 1."""

    exit_status = 1

    def __str__(self) -> str:
        return shown(super().__str__())


class RequestError(HessianLRError, ValueError):
    """The request itself was wrong (a bad name, value, file): exit status 2."""

    exit_status = 2


class DamagedError(RequestError):
    """A file is not as it was written: cut short, or changed."""


class NonFiniteError(HessianLRError, ArithmeticError):
    """A loss, gradient or product was NaN or infinite; no number may follow from it."""


class OutOfMemory(HessianLRError):
    """There was no memory for the work: with more of it, the same call may succeed."""


class RankError(RuntimeError):
    """The ranks can no longer work together: one is gone, or has failed where the others have not.

    No failure of one method among others, as a ``HessianLRError`` is: nothing can go on.
    """


class NotTwiceDifferentiable(HessianLRError):
    """Some part of the model has no second derivative, or none that can be trusted."""


def reason(error: BaseException) -> str:
    """Why one piece of work failed, whose failure does not keep the others from theirs.

    Raises:
        RequestError: the error itself where it is one: with a wrong request nothing goes on.
    """
    if isinstance(error, RequestError):
        raise error
    return str(error) or type(error).__name__


def hint(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a question to put behind a complaint; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """The error for a name that is not in a registry, with the nearest name that is."""
    choices = sorted(known)
    return RequestError(f"unknown {kind} {name!r}.{hint(name.lower(), choices)} Known: {', '.join(choices)}.")
