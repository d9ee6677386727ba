"""The command that runs a sweep's file: what it is given, and what it says."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from ..sweep.cluster import Cluster
from . import options
from .option_groups import Interrupted
from .options import Output
from .overwriting import check_overwriting, sources

if TYPE_CHECKING:
    from ..progress import Progress
    from ..sweep.grid import Grid
    from ..sweep.work import Source
    from .grids import Job, Plan

_WIDTH = 80
_SHOWN = 4

_File = Annotated[
    str,
    typer.Argument(
        metavar="FILE.yaml", parser=options.expanded, help="What to run, as in examples/sweep.yaml."
    ),
]
_Out = Annotated[
    str,
    typer.Option(
        metavar="DIR", parser=options.expanded, help="Folder of all results; resumes what is there."
    ),
]


def sweep(
    file: _File,
    cluster: Cluster | None,
    output: Output,
    out: _Out = "runs/sweep",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be run, and what it costs.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Runs to make this time; 0: only the table.", show_default="all"),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Make only the I-th of N equal shares.", show_default="all"),
    ] = None,
) -> int:
    """Run every setting of a file.

    Learning rate × batch size × rank × method × … from one YAML file, counted and costed first.
    """
    part = None if shard is None else _shard(shard)
    if limit is not None and limit < 0:
        raise RequestError(f"--limit takes a whole number of at least 0, not {limit}")
    options.check_writable(out, "--out", folder=True)
    grid = _grid(file)
    _check_overwriting(file, grid, out, output)

    from .. import results
    from ..sweep.engine import Local
    from ..sweep.engines import opened
    from . import terminal

    with (
        opened(None if dry_run else cluster, [one.setting for one in grid.wanted]) as remote,
        _job(grid, out, output, shard=part, limit=limit) as (job, source, progress),
    ):
        plan = job.plan()
        if not dry_run:
            engine = remote or Local(source)
            if not output.quiet:
                progress.say(_told(plan, engine.width))
            document = job.run(plan, engine)
    if dry_run:
        output.write({"schema": results.SCHEMA, "plan": plan})
        if output.tables:
            print(_told(plan, 1))
        _notes(plan.notes, output)
        return 0
    output.write(document)
    rows = document["results"]
    if output.tables:
        terminal.sweep_table(rows)
        print(_common(grid))
    _notes(document["notes"], output)
    if not output.quiet:
        for line in _advice([row for row in rows if terminal.decided(row)], grid.varying):
            terminal.say(line)
        for line in _some_gaps(rows):
            terminal.say(line)
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        terminal.say(f"{row['label']}: failed: {row['notes'][0]}")
    return 1 if failed else 0


def merge(
    file: _File,
    folders: Annotated[
        list[str],
        typer.Argument(metavar="DIR...", parser=options.expanded, help="Folders that shares wrote."),
    ],
    output: Output,
    out: _Out = "runs/sweep",
) -> int:
    """Bring the shares of a sweep from several folders into one.

    Trains nothing and overwrites nothing. Every run that is missing, found twice or damaged is named, and
    so are files of something else. Status 1: runs are missing.
    """
    options.check_writable(out, "--out", folder=True)
    from ..sweep.merge import runs_folder

    for folder in folders:
        runs_folder(Path(folder))
    grid = _grid(file)
    _check_overwriting(file, grid, out, output)

    from . import terminal

    with _job(grid, out, output) as (job, _, _):
        document = job.merge([Path(folder) for folder in folders])
    output.write(document)
    rows = document["results"]
    if output.tables:
        terminal.sweep_table(rows)
    _notes(document["notes"], output)
    gaps = _gaps(rows)
    for gap in gaps:
        terminal.say(f"missing: {gap}")
    missing = sum(len(row["missing"]) for row in rows)
    if gaps:
        terminal.say(f"{_missing(rows)} missing; `hessian-lr sweep {file} --out {out}` makes the rest.")
    return 1 if missing else 0


def _grid(file: str) -> Grid:
    """The file's settings, each known to be one that can be trained, their data to exist."""
    from ..sweep.grid import expand
    from ..sweep.request import read

    grid = expand(read(file))

    from .. import data
    from ..methods import method_of
    from ..sweep.recipe import check_steps

    for one in grid.wanted:
        try:
            method_of(one.setting)
            check_steps(one.setting)
        except RequestError as error:
            raise RequestError(f"{file}: exclude {grid.label(one.setting)}: {error}") from error
    for name, fields in dict.fromkeys((one.setting.data, one.setting.fields) for one in grid.wanted):
        data.check(name, fields=fields)
    return grid


def _check_overwriting(file: str, grid: Grid, out: str, output: Output) -> None:
    from .grids import DOCUMENT, TABLE

    written = [("--out", place) for place in (out, f"{out}/{DOCUMENT}", f"{out}/{TABLE}")]
    read = [file, *sources(one.setting for one in grid.wanted)]
    check_overwriting([*written, ("--json", output.json)], read)


@contextmanager
def _job(grid: Grid, out: str, output: Output, **what: Any) -> Iterator[tuple[Job, Source, Progress]]:
    """The grid in its folder, with what loads its models and shows how it goes on."""
    from ..allocator import keep_freed_memory
    from ..progress import Progress, quiet_libraries
    from ..sweep.work import Source
    from . import grids

    with quiet_libraries():
        keep_freed_memory()
        source = Source(output.quiet)
        try:
            with Progress(output.quiet) as progress:
                progress.method("sweep", 1, 1)
                yield grids.Job(grid, Path(out), source, progress, **what), source, progress
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; what is finished is kept in {out}: the same command goes on"
            ) from None


def duration(seconds: float) -> str:
    """A time in its two largest units: 3 h 10 min."""
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"{left // 60} min {left % 60} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _shard(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
    if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
        raise RequestError(
            f"--shard takes a share and their number, counted from 1, such as 2/4, not {text!r}"
        )
    return int(numbers[1]), int(numbers[2])


def _told(plan: Plan, at_a_time: int) -> str:
    """The plan in a few lines."""
    runs, settings = _range(plan.runs, "run"), _range((plan.settings, plan.settings), "setting")
    said = f"{runs} ({settings})"
    if plan.done:
        said += f", {plan.done:,} of them there already"
    if plan.shard:
        said += f"; share {plan.shard}"
    low, high = (duration(seconds) for seconds in plan.seconds)
    took = low if low == high else f"{low} to {high}"
    said += f"; {_range(plan.to_go, 'run')} to make" + (f", about {took} here" if plan.to_go[1] else "")
    if at_a_time > 1:
        said += f" one after the other; {at_a_time} at a time on the cluster"
    sources = []
    if plan.timed:
        sources.append(f"steps timed just now for {_range((plan.timed, plan.timed), 'shape')}")
    if plan.finished:
        sources.append(f"{_range((plan.finished, plan.finished), 'finished run')} of the same kind")
    if sources:
        said += f". Cost from {' and '.join(sources)}."
    return textwrap.fill(said, _WIDTH - 1)


def _range(ends: tuple[int, int], what: str) -> str:
    low, high = ends
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{number} {what}{'' if high == 1 else 's'}"


def _advice(rows: list[dict[str, Any]], varying: tuple[str, ...]) -> list[str]:
    """A line on what to do, for each model and data: losses of one do not compare with another's."""
    from . import terminal

    names = [name for name in ("model", "data", "fields", "max_length") if name in varying]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        where = ", ".join(f"{name.replace('_', ' ')} {row['setting'][name]}" for name in names)
        groups.setdefault(where, []).append(row | {"method": row["label"], "factor_error": None})
    found = {where: terminal.advice(group) for where, group in groups.items()}
    return [f"{where}: {line}" if where else line for where, line in found.items()]


def _common(grid: Grid) -> str:
    return textwrap.fill(f"In common: {grid.common()}.", _WIDTH - 1)


def _gaps(rows: list[dict[str, Any]]) -> list[str]:
    """Which runs are missing, a learning rate of a setting each."""
    from .terminal import rate

    gaps = []
    for row in rows:
        rates: dict[float, list[str]] = {}
        for one in row["missing"]:
            rates.setdefault(one["lr"], []).append(str(one["seed"]))
        gaps += [
            f"{row['label']} at {rate(lr)} (seed {', '.join(seeds)})" for lr, seeds in sorted(rates.items())
        ]
    return gaps


def _missing(rows: list[dict[str, Any]]) -> str:
    """How many runs are missing."""
    missing = sum(len(row["missing"]) for row in rows)
    searching = any(row["missing"] and row["lrs"] == "auto" for row in rows)
    return f"{'At least ' if searching else ''}{_range((missing, missing), 'run')}"


def _some_gaps(rows: list[dict[str, Any]]) -> list[str]:
    """Which runs are missing, in a line."""
    gaps = _gaps(rows)
    if not gaps:
        return []
    more = f"; and at {len(gaps) - _SHOWN} more learning rates" if len(gaps) > _SHOWN else ""
    return [
        f"{_missing(rows)} missing: "
        f"{'; '.join(gaps[:_SHOWN])}{more}. The same command without --limit and --shard makes them."
    ]


def _notes(notes: Any, output: Output) -> None:
    from .terminal import say

    for note in () if output.quiet else notes:
        say(f"note: {note}")
