"""The command that compares what `validate` and `sweep` found with classical theory."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import RequestError
from ..files import SCHEMA
from . import options
from .options import Output
from .overwriting import check_overwriting


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
        options.check_writable(out, "--out")

    from .. import validated
    from ..alignment import align as fit
    from ..figures import eigenvalue_figure
    from ..figures.rows import eigenvalue_points
    from ..figures.style import files, save
    from . import tables, terminal

    drawn = [] if out is None else [("--out", str(file)) for file in files(out)]
    check_overwriting([*drawn, ("--json", output.json)], runs)
    rows = validated.read_measured(runs)
    trained = {str(one.setting.get("optimizer")): one.file for one in rows}
    if len(trained) > 1:
        raise RequestError(
            "learning rates of different optimizers do not compare: "
            + ", ".join(f"{file} has {name}" for name, file in trained.items())
            + "; name those of one of them"
        )
    rows, notes = validated.each_once([one for one in rows if one.number("lambda_max") is not None])
    points = eigenvalue_points(rows)
    used = [(p.eigenvalue, p.score.best_lr) for p in points if p.score.best_lr and not p.score.censored]
    if not used:
        raise RequestError(
            "none of these results has both a positive eigenvalue and a best learning rate inside its sweep; "
            "run `hessian-lr validate` with more learning rates"
        )
    alignment = fit(*zip(*used, strict=True))
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
