"""The command that makes a document again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..rows import AnyRow, PredictionRow, ScoredRow, SpectrumRow, SweepRow
from .documents import Document, Entry


def commands(document: Document) -> list[str]:
    """A command line for each request: the methods of a folder may have been added call by call."""
    if "varying" in document.whole:
        return [_sweep(document)]
    requests: dict[str, list[Entry]] = {}
    for entry in document.entries:
        requests.setdefault(_own(document, entry.row), []).append(entry)
    return [command(replace(document, entries=tuple(entries))) for entries in requests.values()]


def command(document: Document) -> str:
    """The command line of the first method's request, with every option of the setting, whatever its default
    may be one day.

    What a document does not tell (one of an early version lacks ``request``, ``lrs`` and ``fast``) is left
    at its default.
    """
    setting, row = document.entries[0].setting, document.entries[0].row
    if setting.peft_config is not None:
        adapter = ["--peft-config " + shlex.quote(str(setting.peft_config))]
    else:
        adapter = [
            " ".join(_options(method=entry.method) for entry in document.entries),
            _options(rank=setting.rank, alpha=setting.alpha, target_modules=setting.target_modules),
        ]
    lines = [
        _options(model=setting.model, data=setting.data, fields=setting.fields),
        *adapter,
        _options(
            optimizer=setting.optimizer,
            batch_size=setting.batch_size,
            steps=setting.steps,
            seed=setting.seed,
            samples=setting.samples,
        ),
        _options(max_length=setting.max_length, device=setting.device, dtype=setting.dtype),
    ]
    lines.append(_own(document, row))
    return " \\\n    ".join([f"hessian-lr {document.command}", *(line for line in lines if line)])


def _sweep(document: Document) -> str:
    """The command of a sweep's whole file."""
    row, file = document.entries[0].row, str(document.whole["file"])
    assert isinstance(row, SweepRow)
    own = {"out": _from_here(document.file.parent), "predictor": row.predictor}
    own["calibration"] = row.calibration_file and _from_here(Path(row.calibration_file))
    return f"hessian-lr sweep {shlex.quote(_from_here(Path(file)))} {_options(**own)}"


def _own(document: Document, row: AnyRow) -> str:
    """The options of the command itself that a row was asked for with."""
    whole, json = document.whole, _from_here(document.file)
    if isinstance(row, SpectrumRow):
        return _options(**(_asked(row) if row.request is None else row.request), json=json)
    file = row.calibration_file
    # No predictor to ask for stands where a sweep's rate was moved, nor where no constants are known.
    measured = row.predictor not in ("transfer", "none")
    own = {
        "predictor": row.predictor if measured else None,
        "fast": measured and isinstance(row, PredictionRow) and row.fast,
        "calibration": file and _from_here(Path(file)),
    }
    if isinstance(row, ScoredRow):
        out = _from_here(document.file.parent)
        return _options(**own, seeds=whole.get("seeds"), lrs=whole.get("lrs"), out=out)
    sources = [_options(**{"from": _from_here(Path(source))}) for source in row.sources or ()]
    return " ".join([*sources, _options(**own, json=json)])


def _from_here(path: Path) -> str:
    """A path as it may be typed in this folder; outside it no more than its name, for pages are handed on."""
    if not path.is_absolute():
        return str(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def _asked(row: SpectrumRow) -> dict[str, Any]:
    """What must have been asked for, by what is there."""
    found = {name: getattr(row, name) is not None for name in ("bracket", "density")}
    return {**found, "per_module": row.modules is not None}


def _options(**values: Any) -> str:
    """Options as a shell takes them; None and False are not given, lists are joined by commas."""
    words = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, (list, tuple)):
            words.append(",".join(_plain(one) for one in value))
        elif value is not True:
            words.append(_plain(value))
    return shlex.join(words)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
