"""Several folders' runs of one sweep in one: each once, none lost or overwritten, the rest named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import write_bytes
from ..errors import RequestError
from ..setting import CONTENTS, DTYPES, Setting
from . import plan
from .run import RunResult
from .schedule import Work

#: What two files of one run may differ in: how long it took, and where its inputs lay.
_APART = ("seconds", "setting")
_INPUTS = (*CONTENTS, "dtype")  # of a setting; the key tells what they are


@dataclass(frozen=True)
class _Found:
    """A run's file.

    Attributes:
        path: Where it is.
        run: What it holds.
    """

    path: Path
    run: RunResult


def merge(works: Sequence[Work], folders: Sequence[Path], target: Path) -> tuple[str, ...]:
    """Copy the runs of ``works`` that lie in ``folders`` to ``target``, which keeps those it has.

    All files are read and compared before the first is written, and each appears whole or not at all.
    A run that is there twice is the same if everything but its wall time is.

    Args:
        works: The sweep.
        folders: Folders that ``sweep --out`` wrote, or their ``runs``.
        target: Folder of run files; it exists.

    Returns:
        What a reader should know: runs found twice, damaged files, files of something else.

    Raises:
        RequestError: there is no such folder; two files of one run contradict each other; or a file
            in ``target`` is damaged where a run belongs.
        HessianLRError: ``target`` cannot be written.
    """
    belong = dict(belonging(works))
    kept: dict[str, _Found] = {}
    twice: dict[Path, list[str]] = {}
    clashes: list[str] = []
    notes: list[str] = []
    for folder in dict.fromkeys(one.resolve() for one in (target, *map(runs_folder, folders))):
        found, told = _read(folder, belong, owner=folder == target.resolve())
        notes += told
        for key, one in found.items():
            if key not in kept:
                kept[key] = one
            elif differing := _differing(kept[key].run, one.run):
                clashes.append(f"{kept[key].path} and {one.path} ({differing})")
            else:
                twice.setdefault(folder, []).append(key)
    if clashes:
        raise RequestError(
            f"{_count(len(clashes), 'run')} came out differently in two folders, and nothing was merged: "
            f"{'; '.join(clashes)}. Find out which is right (other hardware, versions?) and remove the other"
        )
    for folder, keys in twice.items():
        was, counts = ("was", "counts") if len(keys) == 1 else ("were", "count")
        notes.append(
            f"{_count(len(keys), 'run')} of {folder} {was} found before with the same result and {counts} "
            f"once: {', '.join(sorted(keys))}"
        )
    for key, one in kept.items():
        if one.path.parent != target.resolve():
            write_bytes(target / f"{key}.json", one.path.read_bytes())
    return tuple(notes)


def runs_folder(folder: Path) -> Path:
    """Where the run files of a sweep's folder are; a folder of run files is its own.

    Raises:
        RequestError: there is no such folder.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; name the ones that the shares wrote with --out")
    inner = folder / "runs"
    return inner if inner.is_dir() else folder


def belonging(works: Sequence[Work]) -> Iterator[tuple[str, tuple[Work, Setting, float]]]:
    """The key of every run that the sweep can have: of a search, at any point of its grid."""
    for work in works:
        points = range(plan.LOWEST, plan.HIGHEST + 1)
        for lr in work.wanted.lrs or map(plan.learning_rate, points):
            for seed in work.wanted.seeds:
                one = dataclasses.replace(work.wanted.setting, seed=seed)
                yield work.finished.path(one, lr).stem, (work, one, lr)


def _read(
    folder: Path, belong: Mapping[str, tuple[Work, Setting, float]], *, owner: bool
) -> tuple[dict[str, _Found], list[str]]:
    """The folder's runs of this sweep by key, and a note for each kind of other file in it."""
    found: dict[str, _Found] = {}
    notes: list[str] = []
    foreign: list[str] = []
    for path in sorted(one for one in folder.iterdir() if one.is_file()):
        try:
            if path.suffix != ".json":
                foreign.append(path.name)
                continue
            run = RunResult.read(path)
        except RequestError as error:
            if owner and path.stem in belong:
                raise RequestError(
                    f"{path} is damaged, and nothing is overwritten; delete it: {error}"
                ) from error
            notes.append(f"{path} is damaged and was left out: {error}")
            continue
        if path.stem != run.key:
            notes.append(
                f"{path} holds run {run.key} under another name and was left out; "
                f"rename it to {run.key}.json if it is meant"
            )
        elif run.key not in belong:
            foreign.append(path.name + _other_precision(run, belong))
        elif wrong := _another(run, *belong[run.key][1:]):
            text = f"{path} does not describe the run of its name ({wrong})"
            if owner:
                raise RequestError(f"{text}, and nothing is overwritten; delete it")
            notes.append(f"{text} and was left out")
        else:
            found[run.key] = _Found(path, run)
    if foreign:
        notes.append(
            f"{folder}: {_count(len(foreign), 'file')} of something else (another sweep, model or data) "
            f"left alone: {', '.join(foreign)}"
        )
    if not found and not owner:
        notes.append(f"{folder} has no run of this sweep")
    return found, notes


def _another(run: RunResult, setting: Setting, lr: float) -> str:
    """In what a file's run differs from the one that its key names."""
    have, want = run.setting.training_identity(), setting.training_identity()
    names = [name for name in sorted({*have, *want} - {*_INPUTS}) if have.get(name) != want.get(name)]
    return ", ".join([*names, *(["lr"] if run.lr != lr else [])])


def _other_precision(run: RunResult, belong: Mapping[str, tuple[Work, Setting, float]]) -> str:
    """Words for a run that is of the sweep but for the precision that "auto" was elsewhere."""
    for work, setting, lr in belong.values():
        if (setting.seed, lr) != (run.setting.seed, run.lr):
            continue
        for dtype in DTYPES[1:]:
            one = dataclasses.replace(setting, dtype=dtype)
            if work.finished.path(one, lr).stem == run.key:
                return f" (this sweep's, but in {dtype}: name dtype in the file)"
    return ""


def _differing(one: RunResult, other: RunResult) -> str:
    """The results in which two files of one run differ, with their values."""
    first, second = (_results(run) for run in (one, other))
    return ", ".join(
        f"{name} {first[name]} and {second[name]}" for name in first if first[name] != second[name]
    )


def _results(run: RunResult) -> dict[str, Any]:
    return {name: value for name, value in run.to_dict().items() if name not in _APART}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
