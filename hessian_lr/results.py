"""The JSON that commands write: one document a command, with its ``rows``."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

from . import __version__
from .files import SCHEMA
from .rows import AnyRow
from .setting import Setting

_PACKAGES = ("torch", "transformers", "peft")


def document(settings: Sequence[Setting], results: Sequence[AnyRow], **more: Any) -> dict[str, Any]:
    """A command's JSON: the settings differ in their method only."""
    common = settings[0].to_dict()
    del common["method"]
    common["methods"] = [setting.method for setting in settings]
    return {
        "schema": SCHEMA,
        "setting": common,
        "results": list(results),
        "versions": versions(),
        **more,
    }


def versions() -> dict[str, str]:
    """Of all that results may depend on."""
    own = {"hessian-lr": __version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in _PACKAGES}
