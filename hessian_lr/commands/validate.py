"""The command that proves predictions: its options, and what of them goes together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files import VALIDATE_FILE
from ..overwriting import check_overwriting
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
    from ..study.predicting import check_predictor, constants_for

    check_predictor(predictor, settings)
    rates = None if lrs == "auto" else options.numbers(lrs, float, "--lrs")
    seed_list = options.numbers(seeds, int, "--seeds")
    options.check_writable(out, "--out", folder=True)

    from ..allocator import keep_freed_memory
    from ..progress import Progress, quiet_libraries
    from ..study.loading import load
    from ..study.measured import Predicting
    from ..study.validating import Job
    from ..sweep.runner import check_plan
    from . import session, tables, terminal

    written = [("--out", out), ("--out", f"{out}/{VALIDATE_FILE}"), ("--json", output.json)]
    check_overwriting(written, [calibration], settings)
    check_plan(settings[0], rates, seed_list)
    constants = constants_for(predictor, calibration)
    with quiet_libraries(), opened(cluster, settings) as engine:
        keep_freed_memory()
        loaded, data = load(settings, quiet=output.quiet)
        predicting = Predicting(predictor, constants, calibration)
        job = Job(settings, loaded, data, Path(out), seed_list, rates, predicting, engine)
        with resumable(out), Progress(output.quiet) as progress:
            document = job.run(progress)
    rows = document["results"]
    status = session.tell(document, rows, output, tables.validate_table)
    if not output.quiet:
        terminal.say(tables.advice(rows))
    return status
