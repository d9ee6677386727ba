"""The command that compares what `validate` and `sweep` found with classical theory."""

from __future__ import annotations

from typing import Annotated

import typer

from ..files import SCHEMA
from ..overwriting import check_overwriting, check_writable
from . import options
from .options import Output


def align(
    runs: options.Runs,
    output: Output,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", parser=options.expanded, help="Draw it; FILE.svg and FILE.png are written."
        ),
    ] = None,
) -> int:
    """Compare validated results with classical theory."""
    if out is not None:
        check_writable(out, "--out")

    from .. import validated
    from ..figures import eigenvalue_figure
    from ..figures.style import files, save
    from ..study.aligning import compared
    from . import tables, terminal

    drawn = [] if out is None else [("--out", str(file)) for file in files(out)]
    check_overwriting([*drawn, ("--json", output.json)], runs)
    alignment, points, notes = compared(validated.read_validated(runs))
    if out is not None:
        save(eigenvalue_figure(points), out)
    listed = [
        {
            "method": p.method,
            "lambda_max": p.eigenvalue,
            "best_lr": p.score.best_lr,
            "censored": p.score.censored,
        }
        for p in points
    ]
    output.write({"schema": SCHEMA, "alignment": alignment, "points": listed, "notes": notes})
    if output.tables:
        tables.align_table(alignment)
    if not output.quiet:
        for note in notes:
            terminal.say(f"note: {note}")
    return 0
