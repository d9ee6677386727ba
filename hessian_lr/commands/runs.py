"""The commands that live on what `validate` wrote: align, which compares it with theory, and calibrate."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RequestError
from ..files import SCHEMA
from . import options
from .options import Output
from .overwriting import check_overwriting

if TYPE_CHECKING:
    from ..validated import Validated


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
    rows = _measured(runs)
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
    options.check_writable(out, "--out")
    check_overwriting([("--out", out), ("--json", output.json)], [*runs, calibration])

    from .. import validated
    from ..predict import load_calibration
    from ..predict.fit import LAWS, fit, unheard
    from . import tables, terminal

    observations, doubled = validated.observations(_measured(runs))
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


def _measured(runs: list[str]) -> list[Validated]:
    """The rows of some files, once it is known that any has a curvature."""
    from ..validated import read_validated

    rows = read_validated(runs)
    if not any(one.is_measured for one in rows):
        raise RequestError(
            "none of these results has a curvature; a sweep's folder gets it, and trains nothing again, from "
            "`hessian-lr sweep FILE.yaml --out DIR --limit 0 --predictor combined`"
        )
    return rows
