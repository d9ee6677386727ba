"""The command that proves predictions: its options, and what of them goes together."""

from __future__ import annotations

from typing import Annotated

import typer

from ..setting import Setting
from ..sweep.engine import Cluster
from . import options
from .ending import resumable
from .engine_options import opened
from .options import Output


def validate(
    settings: list[Setting],
    cluster: Cluster | None,
    output: Output,
    predictor: Annotated[str, options.PREDICTOR] = "combined",
    calibration: options.Calibrated = None,
    lrs: Annotated[
        str,
        typer.Option(metavar="auto|1e-4,3e-4", help="Learning rates to run; auto: around the prediction."),
    ] = "auto",
    seeds: Annotated[str, typer.Option(metavar="0,1", help="Seeds of the runs.")] = "0",
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR", parser=options.expanded, help="Folder of all results; resumes what is there."
        ),
    ] = "runs/validate",
) -> int:
    """Prove predictions against short training runs."""
    rates = None if lrs == "auto" else options.numbers(lrs, float, "--lrs")
    seed_list = options.numbers(seeds, int, "--seeds")

    from ..allocator import keep_freed_memory
    from ..progress import Progress, quiet_libraries
    from ..study.loading import load
    from ..study.validating import Job, checked
    from . import session, tables, terminal

    asked = checked(
        settings,
        out,
        predictor=predictor,
        calibration=calibration,
        lrs=rates,
        seeds=seed_list,
        called="--out",
        written=[("--json", output.json)],
    )
    with quiet_libraries(), opened(cluster, settings) as engine:
        keep_freed_memory()
        loaded, data = load(settings, quiet=output.quiet)
        with resumable(out), Progress(output.quiet) as progress:
            document = Job(asked, loaded, data, engine).run(progress)
    status = session.tell(document, output, tables.validate_table)
    if not output.quiet:
        terminal.say(tables.advice(document.rows))
    return status
