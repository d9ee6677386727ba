"""`hessian-lr report`: results as one HTML page."""

from __future__ import annotations

from typing import Annotated

import typer

from ..files import SCHEMA
from ..overwriting import check_overwriting, check_writable
from . import options
from .options import Output


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNS...",
            parser=options.expanded,
            help="Folders of `validate` and `sweep`, and files of `predict --json` and `spectrum --json`.",
        ),
    ],
    output: Output,
    out: Annotated[
        str, typer.Option(metavar="FILE", parser=options.expanded, help="The HTML file to write.")
    ],
) -> int:
    """Make one HTML page of results.

    It recommends a learning rate and shows what that rests on; it is one file and needs no network.
    """
    check_writable(out, "--out")
    check_overwriting([("--out", out), ("--json", output.json)], runs)

    from ..report import write_report
    from . import terminal

    parts = [
        {
            "setting": f"{part.title}, {part.subtitle}",
            "recommendation": part.advice.sentence.striptags(),
            "reasons": list(part.advice.reasons),
        }
        for part in write_report(runs, out)
    ]
    output.write({"schema": SCHEMA, "report": out, "parts": parts})
    if output.tables:
        for part in parts:
            print(f"{part['setting']}\n{part['recommendation']}")
    if not output.quiet:
        terminal.say(f"written to {out}")
    return 0
