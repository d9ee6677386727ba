"""The command that fits the predictors' constants to what `validate` and `sweep` found."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from ..files import SCHEMA
from ..overwriting import check_overwriting, check_writable
from . import options
from .options import Output


def calibrate(
    runs: options.Runs,
    output: Output,
    out: Annotated[
        str, typer.Option(metavar="FILE", parser=options.expanded, help="Where the constants are written.")
    ],
    calibration: options.Calibrated = None,
) -> int:
    """Fit the predictors' constants to sweeps.

    `predict --calibration FILE` and `validate --calibration FILE` then use them. `--calibration` here names
    constants to start from, which none of these sweeps may have had a part in.
    """
    check_writable(out, "--out")
    check_overwriting([("--out", out), ("--json", output.json)], [*runs, calibration])

    from .. import validated
    from ..predict import load_calibration
    from ..predict.fit import LAWS, fit, unheard
    from . import tables, terminal

    observations, doubled = validated.observations(validated.read_measured(runs))
    current = load_calibration(calibration)
    found, notes = fit(observations, current), [*doubled, *unheard(observations, current)]
    laws = [law for law in (getattr(current, name) for name in LAWS) if law]
    if calibration is not None and not any(law.fitted_to for law in laws):
        notes.append(
            f"{calibration} does not tell which settings it comes from, as files of earlier versions do not: "
            "those of these settings that are among them count twice"
        )
    found.write(out)
    output.write(
        {
            "schema": SCHEMA,
            "calibration": found,
            "observations": [dataclasses.asdict(o) for o in observations],
            "notes": notes,
        }
    )
    if output.tables:
        tables.calibration_table(found)
    if not output.quiet:
        for note in notes:
            terminal.say(f"note: {note}")
        terminal.say(f"written to {out}; `predict` and `validate` take it as --calibration {out}")
    return 0
