"""The command that runs a sweep's file: what it is given, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RequestError
from ..files import SCHEMA, SWEEP_FILE
from ..overwriting import check_overwriting, check_writable
from ..sweep.engine import Cluster, Local
from . import options
from .ending import resumable
from .engine_options import opened
from .options import Output

if TYPE_CHECKING:
    from ..progress import Progress
    from ..study.grids import Job
    from ..study.measured import Predicting
    from ..sweep.grid import Grid
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
    if limit is not None and limit < 0:
        raise RequestError(f"--limit takes a whole number of at least 0, not {limit}")
    check_writable(out, "--out", folder=True)
    grid = _grid(file)
    _check_overwriting([file, calibration], grid, out, output)
    predicting = _predicting(predictor, calibration, grid)

    from . import sweep_words, tables, terminal

    with (
        opened(None if dry_run else cluster, [one.setting for one in grid.wanted]) as remote,
        _job(grid, out, output, shard=part, limit=limit, predicting=predicting) as (job, source, progress),
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
    check_writable(out, "--out", folder=True)
    from ..sweep.merge import runs_folder

    for folder in folders:
        runs_folder(Path(folder))
    grid = _grid(file)
    _check_overwriting([file], grid, out, output)

    from . import sweep_words, tables, terminal

    with _job(grid, out, output) as (job, _, _):
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


def _grid(file: str) -> Grid:
    """The file's settings, each known to be one that can be trained, their data to exist."""
    from ..sweep.grid import expand
    from ..sweep.request import read

    grid = expand(read(file))

    from .. import data
    from ..methods import method_of

    for one in grid.wanted:
        try:
            method_of(one.setting)
        except RequestError as error:
            raise RequestError(f"{file}: exclude {grid.label(one.setting)}: {error}") from error
    for name, fields in dict.fromkeys((one.setting.data, one.setting.fields) for one in grid.wanted):
        data.check(name, fields=fields)
    return grid


def _check_overwriting(files: Sequence[str | None], grid: Grid, out: str, output: Output) -> None:
    from ..study.sweep_csv import TABLE

    written = [("--out", place) for place in (out, f"{out}/{SWEEP_FILE}", f"{out}/{TABLE}")]
    settings = [one.setting for one in grid.wanted]
    check_overwriting([*written, ("--json", output.json)], files, settings)


def _predicting(predictor: str | None, calibration: str | None, grid: Grid) -> Predicting | None:
    """How the settings are to be predicted, once it is known that all can be.

    Raises:
        RequestError: one cannot, or the constants are none.
    """
    if predictor is None:
        if calibration is not None:
            raise RequestError("--calibration is for what is predicted: name a --predictor, or leave it out")
        return None
    from ..study.measured import Predicting
    from ..study.predicting import check_predictor, constants_for

    for one in grid.wanted:
        check_predictor(predictor, [one.setting])
    return Predicting(predictor, constants_for(predictor, calibration), calibration)


@contextmanager
def _job(grid: Grid, out: str, output: Output, **what: Any) -> Iterator[tuple[Job, Source, Progress]]:
    """The grid in its folder, with what loads its models and shows how it goes on."""
    from ..allocator import keep_freed_memory
    from ..progress import Progress, quiet_libraries
    from ..study.grids import Job
    from ..sweep.source import Source

    with quiet_libraries():
        keep_freed_memory()
        source = Source(output.quiet)
        with resumable(out), Progress(output.quiet) as progress:
            progress.method("sweep", 1, 1)
            yield Job(grid, Path(out), source, progress, **what), source, progress


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
