"""The JSON that commands write: one document a command, with its ``rows``."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from . import __version__
from .files import SCHEMA
from .rows import AnyRow
from .setting import Setting

_PACKAGES = ("torch", "transformers", "peft")
R = TypeVar("R", bound=AnyRow)


@dataclass(frozen=True)
class Document(Generic[R]):
    """What a command found.

    Attributes:
        head: What all rows share: their setting, or of a sweep its file and what varies in it.
        rows: One a method, or of a sweep one a setting.
        notes: What a reader should know of the data and the file.
        more: Further members.
    """

    head: Mapping[str, Any]
    rows: tuple[R, ...]
    notes: tuple[str, ...]
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """It as plain JSON types."""
        rows, notes = [row.to_dict() for row in self.rows], list(self.notes)
        found = {"schema": SCHEMA, **self.head, "results": rows, "versions": versions()}
        return {**found, **self.more, "notes": notes}


def document(
    settings: Sequence[Setting], rows: Sequence[R], notes: Sequence[str], **more: Any
) -> Document[R]:
    """That of settings which differ in their method only."""
    common = settings[0].to_dict()
    del common["method"]
    common["methods"] = [setting.method for setting in settings]
    return Document({"setting": common}, tuple(rows), tuple(notes), more)


def versions() -> dict[str, str]:
    """Of all that results may depend on."""
    own = {"hessian-lr": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in _PACKAGES}
