"""No result is written over a file that its command reads, nor over another of its results."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import RequestError
from ..files import SWEEP_FILE, VALIDATE_FILE
from ..peft_config import CONFIG, WEIGHTS
from ..setting import Setting

# What is read of a folder of results, of an adapter and of a model.
_RESULTS, _ADAPTER = (VALIDATE_FILE, SWEEP_FILE), (CONFIG, WEIGHTS)
_READ = (*_RESULTS, *_ADAPTER, "config.json", "tokenizer.json", "tokenizer_config.json")


def check_overwriting(written: Iterable[tuple[str, str | None]], read: Iterable[str | None]) -> None:
    """Refuse files to write that are read, or are written under another option: before any work.

    One file has many spellings, and links to it.

    Args:
        written: Each option with its file; None and ``"-"`` are no files.
        read: Files, and folders with what is read of them; None is none.

    Raises:
        RequestError: names the option and what it would overwrite.
    """
    taken = {os.path.realpath(file): f"{file}, which this command reads" for file in _files(read)}
    for option, path in written:
        if path is None or path == "-":
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise RequestError(f"{option} {path} would overwrite {taken[place]}: give it a name of its own")
        taken[place] = f"what {option} writes"


def sources(settings: Iterable[Setting]) -> list[str]:
    """What settings are made of: names, files and folders."""
    named = [str(part) for one in settings for part in (one.model, one.data, one.peft_config) if part]
    return list(dict.fromkeys(named))


def _files(paths: Iterable[str | None]) -> Iterator[Path]:
    for path in paths:
        if path is not None:
            given = Path(path).expanduser()
            yield from [given / name for name in _READ] if given.is_dir() else [given]
