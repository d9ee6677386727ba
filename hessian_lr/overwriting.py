"""Where results go: where can be written, not over or among files that are read, nor over each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .errors import RequestError
from .files import SWEEP_FILE, VALIDATE_FILE
from .setting import Setting


def check_overwriting(
    written: Iterable[tuple[str, str | None]], read: Iterable[str | None], settings: Sequence[Setting] = ()
) -> None:
    """Refuse files to write that are read, or are written under another option: before any work.

    One file has many spellings, and links to it. What is written among the files of a model, of an adapter
    or of data may be one of them, or would be read as one the next time.

    Args:
        written: Each option with its file or folder; None and ``"-"`` are no files.
        read: Files, and folders of results; None is none.
        settings: Their model, data and adapter are read as well.

    Raises:
        RequestError: names the option and what it would overwrite.
    """
    parts = [(Path(name).expanduser(), is_data) for name, is_data in _sources(settings)]
    folders = [(path, Path(os.path.realpath(path)), is_data) for path, is_data in parts if path.is_dir()]
    files = [path for path, _ in parts if not path.is_dir()]
    taken = {os.path.realpath(file): why for file, why in [*map(_over, files), *_results(read)]}
    for option, path in written:
        if path is None or path == "-":
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise RequestError(f"{option} {path} would {taken[place]}: give it a name of its own")
        around = [Path(place), *Path(place).parents]
        for name, folder, is_data in folders:
            # Data are read from folders in theirs, too.
            if folder in (around if is_data else around[:2]):
                raise RequestError(
                    f"{option} {path} would stand among the files of {name}, which this command reads: "
                    "give it a place of its own"
                )
        taken[place] = f"overwrite what {option} writes"


def check_among_runs(written: Iterable[tuple[str, str | None]], folders: Iterable[Path]) -> None:
    """Refuse files to write inside folders of runs: there they are runs' own, or would be read as such.

    Args:
        written: As ``check_overwriting`` has it.
        folders: Those that are read, whether they exist or not.

    Raises:
        RequestError: names the option and the folder.
    """
    read = {os.path.realpath(folder): folder for folder in folders}
    for option, path in written:
        if path is None or path == "-":
            continue
        for around in Path(os.path.realpath(path)).parents:
            if (folder := read.get(str(around))) is not None:
                raise RequestError(
                    f"{option} {path} would stand among the runs in {folder}, which this command reads: "
                    "give it a place of its own"
                )


def _sources(settings: Sequence[Setting]) -> Iterator[tuple[str, bool]]:
    """What settings are made of, but for what is built in, and whether it is their data."""
    if not settings:
        return  # commands on results are refused without the seconds that these imports take
    from .data import TASKS
    from .models import ALIASES

    for one in settings:
        if one.model not in ALIASES:
            yield one.model, False
        if one.data not in TASKS:
            yield one.data, True
        if one.peft_config is not None:
            yield str(one.peft_config), False


def _results(paths: Iterable[str | None]) -> Iterator[tuple[Path, str]]:
    """Files, and the results of folders, each with what a file of that name would do."""
    for path in paths:
        if path is None:
            continue
        given = Path(path).expanduser()
        if not given.is_dir():
            yield _over(given)
            continue
        for name in (VALIDATE_FILE, SWEEP_FILE):
            file = given / name
            yield _over(file) if file.exists() else (file, f"be read as results of {path}")


def _over(file: Path) -> tuple[Path, str]:
    return file, f"overwrite {file}, which this command reads"


def check_writable(path: str | Path, option: str, *, folder: bool = False) -> None:
    """Refuse a file (or folder) to write that cannot be written, without making anything.

    Raises:
        RequestError: it is of the other kind, or the nearest folder that exists cannot be written.
    """
    path = Path(path).absolute()
    if not folder and path.is_dir():
        raise RequestError(f"{option} {path} is a folder; give the name of a file")
    home = path if folder else path.parent
    while not os.path.lexists(home):
        home = home.parent
    if not home.is_dir():
        raise RequestError(f"{option} {path} cannot be written: {home} is a file, not a folder")
    if not os.access(home, os.W_OK | os.X_OK):
        raise RequestError(f"{option} {path} cannot be written: no permission to write in {home}")
    if not folder and path.exists() and not os.access(path, os.W_OK):
        raise RequestError(f"{option} {path} cannot be written: no permission")
