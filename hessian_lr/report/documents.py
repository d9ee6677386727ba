"""The JSON that a report is made of, read and checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import RequestError, shown
from ..figures import SweepPanel
from ..figures.rows import sweep_panel
from ..files import SCHEMA, SWEEP_FILE, VALIDATE_FILE, documents, files_of
from ..records import read_json
from ..rows import AnyRow, PredictionRow, ScoredRow, SpectrumRow
from ..setting import Setting
from ..sweep.plan import FEWEST_POINTS, MAX_POINTS
from ..validated import Validated, validated_row

# What tells the commands' rows apart.
_MARKS = {"validate": {"runs", "best_lr"}, "predict": {"lr", "predictor"}, "spectrum": {"confidence"}}
_DEEPEST = 30  # ours have 8 levels
_NO_RUN = "none of this sweep's runs has been made yet"


@dataclass(frozen=True)
class Entry:
    """One method's row of a document.

    Attributes:
        setting: The method's own.
        row: What the command found.
        planned: The fewest and the most runs of its sweep, made or not.
        validated: What identifies it among other sweeps, where ``validate`` wrote it.
        panel: Its sweep, where it has one.
    """

    setting: Setting
    row: AnyRow
    planned: tuple[int, int]
    validated: Validated | None = None
    panel: SweepPanel | None = None

    @property
    def method(self) -> str:
        """The method's name."""
        return self.row.method

    @property
    def predicted(self) -> tuple[float | None, float | None, float | None]:
        """The predicted learning rate with the ends of its range; None where there is none."""
        if isinstance(self.row, ScoredRow):
            return self.row.predicted_lr, self.row.predicted_low, self.row.predicted_high
        if isinstance(self.row, PredictionRow):
            return self.row.lr, self.row.lr_low, self.row.lr_high
        return None, None, None


@dataclass(frozen=True)
class Document:
    """A file that a command wrote; of a sweep's, the settings that differ in their method alone.

    Attributes:
        file: Where it is.
        name: What a reader knows it by.
        command: ``"validate"``, ``"predict"`` or ``"spectrum"``, whose fields the rows have.
        whole: All that stands in it.
        entries: Its rows.
        beside: Notes on files of its folder that were left out.
    """

    file: Path
    name: str
    command: str
    whole: dict[str, Any]
    entries: tuple[Entry, ...]
    beside: tuple[str, ...] = ()


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """The results in folders of ``validate`` and ``sweep`` and in files of ``--json``; each counts once.

    A sweep without any run is left out where its folder has other results.

    Raises:
        RequestError: a file is missing, or is not what one of the four commands writes, or there are no
            results but a sweep without any run.
    """
    files = files_of(paths)
    found = {file: _documents(file, name) for file, name in zip(files, _names(files), strict=True)}
    for empty in [file for file in files if not found[file]]:
        beside = [file for file in files if file.parent == empty.parent and found[file]]
        if not beside:
            raise RequestError(f"{empty}: {_NO_RUN}")
        note = f"{shown(empty.name)} beside {shown(beside[0].name)} was left out: {_NO_RUN}"
        found[beside[0]] = [replace(one, beside=(*one.beside, note)) for one in found[beside[0]]]
    return [one for file in files for one in found[file]]


def _names(files: Sequence[Path]) -> list[str]:
    """As much of each path as tells it apart; a folder's own results go by the name of the folder."""
    whole = [file for file in files if file.name in (VALIDATE_FILE, SWEEP_FILE)]
    folders = [file.parent for file in whole]
    ways = [
        (file.parent if file in whole and folders.count(file.parent) == 1 else file).parts for file in files
    ]

    def alone(way: tuple[str, ...], length: int) -> bool:
        return [other[-length:] for other in ways].count(way[-length:]) == 1

    lengths = (next(n for n in range(1, len(way) + 1) if alone(way, n)) for way in ways)
    return [shown(str(Path(*way[-length:]))) for way, length in zip(ways, lengths, strict=True)]


def _documents(file: Path, name: str) -> list[Document]:
    whole = _presentable(read_json(file))
    expected = f"{file} is not what `hessian-lr validate`, `sweep`, `predict` or `spectrum` writes"
    if not isinstance(whole, dict) or whole.get("schema") != SCHEMA:
        raise RequestError(f"{expected}: it is not a JSON object of schema {SCHEMA}")
    try:
        found = documents(whole)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"{expected}: {type(error).__name__} {error}") from error
    return [_document(file, name, one, expected) for one in found]


def _document(file: Path, name: str, whole: dict[str, Any], expected: str) -> Document:
    rows, setting = whole.get("results"), whole.get("setting")
    if not isinstance(setting, dict) or not isinstance(rows, list) or not rows:
        raise RequestError(f"{expected}: it has no setting, or no results")
    if not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{expected}: a result in it is not an object")
    command = next((name for name, marks in _MARKS.items() if all(marks <= row.keys() for row in rows)), None)
    if command is None:
        raise RequestError(f"{expected}: its results have other fields")
    if not isinstance(whole.get("versions", {}), dict):
        raise RequestError(f"{expected}: its versions are not an object")
    try:
        _check_notes(whole.get("notes", []))
        planned = _planned(whole)
        entries = tuple(_entry(file, command, whole, row, planned) for row in rows)
        return Document(file, name, command, whole, entries)
    except (RequestError, TypeError, AttributeError) as error:
        raise RequestError(f"{expected}: {error}") from error
    except KeyError as error:
        raise RequestError(f"{expected}: {error} is missing") from error


def _presentable(value: Any, depth: int = 0) -> Any:
    """The same JSON with every text as it may be shown: a page or a figure may not hold every character."""
    if depth > _DEEPEST:
        raise RequestError("a report cannot be made of JSON that is nested so deeply")
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list):
        return [_presentable(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {shown(name): _presentable(item, depth + 1) for name, item in value.items()}
    return value


def _planned(whole: dict[str, Any]) -> tuple[int, int]:
    """Runs of a document's sweeps; where it names no learning rates they are searched."""
    seeds, lrs = whole.get("seeds"), whole.get("lrs")
    fewest, most = (len(lrs), len(lrs)) if isinstance(lrs, list) else (FEWEST_POINTS, MAX_POINTS)
    times = len(seeds) if isinstance(seeds, list) else 1
    return fewest * times, most * times


def _entry(
    file: Path, command: str, whole: dict[str, Any], row: dict[str, Any], planned: tuple[int, int]
) -> Entry:
    method = row.get("method")
    if not isinstance(method, str):
        raise RequestError("a result has no method")
    own = {name: value for name, value in whole["setting"].items() if name != "methods"}
    setting = Setting.from_dict({**own, "method": method})
    if command != "spectrum" and not isinstance(setting.samples, int):
        raise RequestError(f"samples must be a whole number, not {setting.samples!r}")
    if command == "validate":
        validated = validated_row(file, whole, row)
        panel = sweep_panel(validated) if validated.row.runs else None
        return Entry(setting, validated.row, planned, validated, panel)
    kind = SpectrumRow if command == "spectrum" else PredictionRow
    return Entry(setting, kind.from_dict(row), planned)


def _check_notes(notes: object) -> None:
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise RequestError("the notes of the data are not a list of sentences")
