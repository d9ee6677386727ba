"""Settings of the bench measured again: in parts if asked, each kept when it is done, all in one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hessian_lr.allocator import keep_freed_memory
from hessian_lr.progress import quiet_libraries
from hessian_lr.records import read_json, write_json

from .run import OUT, Loader

#: What measures one setting, as records without its key.
Measure = Callable[[Loader], Iterable[dict[str, Any]]]


def again(
    description: str, file: Path, settings: Mapping[str, tuple[str, Measure]], report: Callable[[], None]
) -> None:
    """Read the command line and do what it asks.

    Args:
        description: Of the command.
        file: The table, with a row a record; single measurements are kept in ``runs/`` under its name.
        settings: (key, measurement) by the name under which it is kept.
        report: Tells what the table says.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th setting; only the whole is written")
    parser.add_argument("--report", action="store_true", help="nothing is measured: only what it comes to")
    asked = parser.parse_args()
    index, parts = map(int, asked.part.split("/"))
    if not asked.report:
        _measure(OUT / file.stem, list(settings.items())[index::parts])
        if parts > 1:
            return
        found = [read_json(one) for one in sorted((OUT / file.stem).glob("*.json"))]
        records = [{"key": one["key"], **record} for one in found for record in one["found"]]
        pd.DataFrame(records).to_csv(file, index=False, float_format="%.6g")
    report()


def _measure(folder: Path, chosen: Iterable[tuple[str, tuple[str, Measure]]]) -> None:
    keep_freed_memory()
    loader = Loader()
    with quiet_libraries():
        for name, (key, measure) in chosen:
            if not (folder / f"{name}.json").exists():
                found = list(measure(loader))
                write_json(folder / f"{name}.json", {"key": key, "found": found})
                print(name, len(found), flush=True)
