"""The command line: each command composes the modules that do the work."""

from __future__ import annotations

import dataclasses
import io
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__, job
from .commands import options
from .commands import predict as predict_command
from .commands import report as report_command
from .commands import runs as runs_command
from .commands import sweep as sweep_command
from .commands.ending import explained, termination_as_interrupt
from .commands.option_groups import Interrupted, takes
from .commands.options import Output
from .commands.overwriting import check_overwriting, sources
from .errors import RequestError, shown, unknown_name
from .files import SCHEMA, VALIDATE_FILE
from .setting import Setting
from .sweep.cluster import Cluster, engine

# Everything that loads torch or transformers is imported where it is used: `--help` needs neither.
if TYPE_CHECKING:
    from .commands.session import Turn

Row = dict[str, Any]

NAME = "hessian-lr"
_CATALOGUE = ("methods", "tasks", "models", "optimizers")


def _example(arguments: str) -> str:
    # \b keeps the lines as they are.
    return f"\b\nExample:\n  {NAME} {arguments}"


app = typer.Typer(name=NAME, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Predict the learning rate of a LoRA fine-tuning run from the curvature of its loss."""
    if version:
        print(f"{NAME} {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())
    elif context.obj is not None:
        context.with_resource(context.obj.joined(context.invoked_subcommand))


app.command(epilog=_example("predict --method lora --method pissa --rank 8 --json -"))(
    takes(settings=options.settings, output=options.output)(predict_command.predict)
)


@app.command(epilog=_example("spectrum --method lora --bracket --samples 8"))
@takes(settings=options.settings, output=options.output)
def spectrum(
    settings: list[Setting],
    output: Output,
    algorithm: Annotated[str, typer.Option(metavar="lanczos|power", help="How λ is found.")] = "lanczos",
    rtol: Annotated[float, typer.Option(help="Relative error of λ at which to stop.")] = 0.05,
    max_products: Annotated[
        int, typer.Option(help="End the search after so many products; checks add a few.")
    ] = 40,
    operator: Annotated[
        str,
        typer.Option(
            metavar="hessian|gauss-newton|central-differences",
            help="The matrix measured; central-differences: the Hessian from gradients alone.",
        ),
    ] = "hessian",
    bracket: Annotated[
        bool, typer.Option("--bracket", help="Closed-form bounds of λ beside it (lora and rslora).")
    ] = False,
    density: Annotated[
        bool, typer.Option("--density", help="The whole spectrum's density too (dozens of products).")
    ] = False,
    per_module: Annotated[
        bool, typer.Option("--per-module", help="λ of each adapted module by itself too (takes long).")
    ] = False,
    checkpoint: options.Checkpoint = None,
) -> int:
    """Measure the loss Hessian's largest eigenvalue."""
    from . import results
    from .commands import session, tables
    from .commands import spectrum as spectra
    from .measure import ALGORITHMS, OPERATORS, Curvature
    from .prepare import prepare
    from .spectrum.stopping import check_stopping

    if algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", algorithm, ALGORITHMS)
    if operator not in OPERATORS:
        raise unknown_name("operator", operator, OPERATORS)
    check_stopping(rtol, max_products)
    if operator == "gauss-newton" and (bracket or per_module):
        raise RequestError(
            "--bracket and --per-module measure the Hessian, not its Gauss-Newton part: leave out --operator "
            "gauss-newton, or run them by themselves"
        )
    if checkpoint is not None and algorithm != "lanczos":
        raise RequestError(f"--checkpoint keeps the state of Lanczos, not of {algorithm!r}: leave one out")
    if checkpoint is not None:
        options.check_writable(checkpoint, "--checkpoint", folder=True)
    check_overwriting([("--checkpoint", checkpoint), ("--json", output.json)], sources(settings))
    request = spectra.Request(rtol, max_products, algorithm, operator, bracket, density, per_module)
    asked = {"request": dataclasses.asdict(request)}

    def work(turn: Turn) -> Row:
        prepared = prepare(turn.setting, turn.loaded, turn.data)
        return spectra.measure(turn.setting, prepared, request, turn.progress, turn.checkpoints) | asked

    def failed(setting: Setting, reason: str) -> Row:
        return results.spectrum_row(setting.method, Curvature.failed(reason)) | asked

    return session.each_method(settings, output, work, failed, tables.spectrum_table, checkpoint)


@app.command(epilog=_example("validate --method lora --method pissa --steps 40 --out runs/two"))
@takes(settings=options.settings, cluster=engine, output=options.output)
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
    ] = ("runs/validate"),
) -> int:
    """Prove predictions against short training runs."""
    predict_command.check_predictor(predictor, settings)
    rates = None if lrs == "auto" else options.numbers(lrs, float, "--lrs")
    seed_list = options.numbers(seeds, int, "--seeds")
    options.check_writable(out, "--out", folder=True)

    from .commands import session, tables, terminal
    from .commands.measured import Predicting
    from .commands.validate import Job
    from .commands.validate import validate as run
    from .progress import Progress, quiet_libraries
    from .sweep.engines import opened
    from .sweep.runner import check_plan

    written = [("--out", out), ("--out", f"{out}/{VALIDATE_FILE}"), ("--json", output.json)]
    check_overwriting(written, [*sources(settings), calibration])
    check_plan(settings[0], rates, seed_list)
    constants = predict_command.constants_for(predictor, calibration)
    with quiet_libraries(), opened(cluster, settings) as engine:
        loaded, data = session.load(settings, output)
        predicting = Predicting(predictor, constants, calibration)
        job = Job(settings, loaded, data, Path(out), seed_list, rates, predicting, engine)
        try:
            with Progress(output.quiet) as progress:
                document = run(job, progress)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; what is finished is kept in {out}: the same command goes on"
            ) from None
    status = session.tell(document, output, tables.validate_table)
    if not output.quiet:
        terminal.say(tables.advice(document["results"]))
    return status


app.command(epilog=_example("align runs/validate --out runs/alignment.svg"))(
    takes(output=options.output)(runs_command.align)
)


app.command(epilog=_example("calibrate runs/a runs/b --out calibration.json"))(
    takes(output=options.output)(runs_command.calibrate)
)


app.command(epilog=_example("report runs/validate density.json --out report.html"))(
    takes(output=options.output)(report_command.report)
)


app.command(epilog=_example("sweep examples/sweep.yaml --dry-run"))(
    takes(cluster=engine, output=options.output)(sweep_command.sweep)
)


app.command(epilog=_example("merge examples/sweep.yaml runs/node1 runs/node2 --out runs/all"))(
    takes(output=options.output)(sweep_command.merge)
)


@app.command("list", epilog=_example("list methods"))
@takes(output=options.output)
def catalogue(
    output: Output,
    what: Annotated[str | None, typer.Argument(metavar="[methods|tasks|models|optimizers]")] = None,
) -> int:
    """List methods, tasks, models and optimizers."""
    if what is not None and what not in _CATALOGUE:
        raise unknown_name("list", what, _CATALOGUE)

    from . import results
    from .commands import tables

    everything = results.catalogue()
    chosen = everything if what is None else {what: everything[what]}
    output.write({"schema": SCHEMA, **chosen})
    if output.tables:
        tables.catalogue(chosen)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    0 done; 1 the work failed; 2 the request was wrong; 130 interrupted; 143 terminated. Errors are one
    line on standard error; ``--debug`` adds the traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A terminal that cannot show λ shows a question mark; the work is not lost over it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # PEFT imports it where it is installed, and it warns of kernels that it could have.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    ranks = job.Job() if job.launched() else None

    def run() -> tuple[int, str]:
        try:
            with termination_as_interrupt():
                return app(arguments, prog_name=NAME, standalone_mode=False, obj=ranks) or 0, ""
        except (Exception, KeyboardInterrupt) as error:
            if "--debug" in arguments:
                for line in traceback.format_exc().splitlines():
                    print(shown(line), file=sys.stderr)
            return explained(error)

    status, message = run() if ranks is None else ranks.run(run)
    if message:
        print(f"{NAME}: {message}", file=sys.stderr)
    return status
