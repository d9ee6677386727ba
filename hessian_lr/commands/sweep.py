"""The command that runs a sweep's file: what it is given, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from ..files import SCHEMA
from ..overwriting import check_among_runs, check_writable
from ..sweep.engine import Cluster, Local
from . import options
from .ending import resumable
from .engine_options import opened
from .options import Output

if TYPE_CHECKING:
    from ..progress import Progress
    from ..study.grids import Asked, Job
    from ..sweep.source import Source

_Predictor = Annotated[
    str | None,
    typer.Option(
        metavar="combined|adam|eigenvalue|probe",
        help="Measure λ and λ_P of each setting as well, and score what this predictor makes of them.",
        show_default="runs alone",
    ),
]
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
    predictor: _Predictor = None,
    calibration: options.Calibrated = None,
) -> int:
    """Run every setting of a file.

    Learning rate × batch size × rank × method × … from one YAML file, counted and costed first. With
    --predictor, `align`, `calibrate` and `report` read the folder, too.
    """
    part = None if shard is None else _shard(shard)
    _check_places(out, output)
    _read_quickly(file)

    from ..study.sweeping import checked
    from . import sweep_words, tables, terminal

    what: dict[str, Any] = {"predictor": predictor, "calibration": calibration, "limit": limit, "shard": part}
    asked = checked(file, out, **what, **_places(output))
    grid = asked.grid
    with (
        opened(None if dry_run else cluster, [one.setting for one in grid.wanted]) as remote,
        _job(asked, output) as (job, source, progress),
    ):
        plan = job.plan()
        if not dry_run:
            engine = remote or Local(source)
            if not output.quiet:
                progress.say(sweep_words.told(plan, engine.width))
            document = job.run(plan, engine)
    if dry_run:
        output.write({"schema": SCHEMA, "plan": plan})
        if output.tables:
            print(sweep_words.told(plan, 1))
        _notes(plan.notes, output)
        return 0
    rows = document.rows
    with output.written(document.to_dict()):
        if output.tables:
            tables.sweep_table(rows)
            print(sweep_words.common(grid))
        _notes([*document.notes, *sweep_words.shared(rows)], output)
    if not output.quiet:
        for line in sweep_words.advice([row for row in rows if tables.decided(row)], grid.varying):
            terminal.say(line)
        for line in sweep_words.some_gaps(rows):
            terminal.say(line)
    failed = [row for row in rows if row.status == "failed"]
    for row in failed:
        terminal.say(f"{row.label}: failed: {row.notes[0]}")
    unpredicted = [row for row in rows if row.prediction_status == "failed"]
    for row in unpredicted:
        terminal.say(f"{row.label}: no prediction: {row.notes[-1]}")
    return 1 if failed or unpredicted else 0


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
    from ..sweep.merge import runs_folder

    _check_places(out, output, [runs_folder(Path(folder)) for folder in folders])
    _read_quickly(file)

    from ..study.sweeping import checked
    from . import sweep_words, tables, terminal

    with _job(checked(file, out, **_places(output)), output) as (job, _, _):
        document = job.merge([Path(folder) for folder in folders])
    rows = document.rows
    with output.written(document.to_dict()):
        if output.tables:
            tables.sweep_table(rows)
        _notes(document.notes, output)
    gaps = sweep_words.gaps(rows)
    for gap in gaps:
        terminal.say(f"missing: {gap}")
    missing = sum(len(row.missing) for row in rows)
    if gaps:
        terminal.say(
            f"{sweep_words.missing(rows)} missing; `hessian-lr sweep {file} --out {out}` makes the rest."
        )
    return 1 if missing else 0


def _read_quickly(file: str) -> None:
    """Have a mistake in the file told before what the rest needs is loaded, which takes seconds."""
    from ..sweep.request import read

    read(file)


def _check_places(out: str, output: Output, shares: Sequence[Path] = ()) -> None:
    """Refuse places where nothing can be written, or among runs: the folder's own, and those of shares."""
    check_writable(out, "--out", folder=True)
    check_among_runs([("--out", out), ("--json", output.json)], [Path(out) / "runs", *shares])


def _places(output: Output) -> dict[str, Any]:
    """What messages call the folder of results, and what is written beside it."""
    return {"called": "--out", "written": [("--json", output.json)]}


@contextmanager
def _job(asked: Asked, output: Output) -> Iterator[tuple[Job, Source, Progress]]:
    """The grid in its folder, with what loads its models and shows how it goes on."""
    from ..allocator import keep_freed_memory
    from ..study import sweeping

    keep_freed_memory()
    with resumable(str(asked.out)), sweeping.opened(asked, output.quiet) as opened_job:
        yield opened_job


def _shard(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
    if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
        raise RequestError(
            f"--shard takes a share and their number, counted from 1, such as 2/4, not {text!r}"
        )
    return int(numbers[1]), int(numbers[2])


def _notes(notes: Iterable[str], output: Output) -> None:
    from .terminal import say

    for note in () if output.quiet else notes:
        say(f"note: {note}")
