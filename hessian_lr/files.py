"""The files that results are written to: their names, their schema, and what tells whose results they are.

Neither torch nor matplotlib is needed to know them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import RequestError
from .records import digest

SCHEMA = 1
VALIDATE_FILE, SWEEP_FILE = "validate.json", "sweep.json"

IDENTITIES = ("data_digest", "model_fingerprint")


def files_of(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that paths name, each once: of a folder its ``validate.json`` and its ``sweep.json``.

    Raises:
        RequestError: there is no such file.
    """
    files: dict[Path, None] = {}
    for path in map(_expanded, [paths] if isinstance(paths, (str, Path)) else paths):
        inside = [path / name for name in (VALIDATE_FILE, SWEEP_FILE)] if path.is_dir() else [path]
        found = [file for file in inside if file.is_file()]
        if not found:
            raise RequestError(
                f"there is no {' or '.join(map(str, inside))}; name a file, or a folder that `hessian-lr "
                "validate --out` or `sweep --out` wrote"
            )
        files.update((file.resolve(), None) for file in found)
    return list(files)


def _expanded(path: str | Path) -> Path:
    return Path(path).expanduser()


def documents(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """A ``sweep.json`` as documents of ``validate``: one for settings that differ in their method alone.

    Settings without any run are left out. What is no sweep's stays as it is.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not what ``sweep`` writes.
    """
    if "varying" not in whole:
        return [whole]
    groups: dict[str, dict[str, Any]] = {}
    for row in whole["results"]:
        if not row["runs"]:
            continue
        setting = {**row["setting"], "seed": min(row["seeds"])}
        method = setting.pop("method")
        own = {"seeds": row["seeds"], "lrs": row["lrs"]} | {name: row[name] for name in IDENTITIES}
        group = groups.setdefault(
            digest([setting, own]), {**whole, **own, "setting": setting | {"methods": []}, "results": []}
        )
        group["setting"]["methods"].append(method)
        group["results"].append(row | {"method": method})
    return list(groups.values())
