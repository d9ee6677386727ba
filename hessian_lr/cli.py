"""The command line: each command composes the modules that do the work."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from . import __version__, job

# What loads torch or transformers is imported where commands use it: `--help` needs neither.
from .commands import align, calibrate, catalogue, options, predict, report, spectrum, sweep, validate
from .commands.ending import explained, termination_as_interrupt
from .commands.engine_options import engine
from .commands.option_groups import takes
from .errors import shown

NAME = "hessian-lr"


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
    takes(settings=options.settings, output=options.output)(predict.predict)
)


app.command(epilog=_example("spectrum --method lora --bracket --samples 8"))(
    takes(settings=options.settings, output=options.output)(spectrum.spectrum)
)


app.command(epilog=_example("validate --method lora --method pissa --steps 40 --out runs/two"))(
    takes(settings=options.settings, cluster=engine, output=options.output)(validate.validate)
)


app.command(epilog=_example("align runs/validate --out runs/alignment.svg"))(
    takes(output=options.output)(align.align)
)


app.command(epilog=_example("calibrate runs/a runs/b --out calibration.json"))(
    takes(output=options.output)(calibrate.calibrate)
)


app.command(epilog=_example("report runs/validate density.json --out report.html"))(
    takes(output=options.output)(report.report)
)


app.command(epilog=_example("sweep examples/sweep.yaml --dry-run"))(
    takes(cluster=engine, output=options.output)(sweep.sweep)
)


app.command(epilog=_example("merge examples/sweep.yaml runs/node1 runs/node2 --out runs/all"))(
    takes(output=options.output)(sweep.merge)
)


app.command("list", epilog=_example("list methods"))(takes(output=options.output)(catalogue.catalogue))


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
