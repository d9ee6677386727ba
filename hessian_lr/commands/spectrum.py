"""The command that measures: its options, and what of them goes together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RequestError, unknown_name
from ..overwriting import check_overwriting, check_writable
from ..setting import Setting, check_counts
from . import options
from .options import Output

if TYPE_CHECKING:
    from .session import Turn


def spectrum(
    settings: list[Setting],
    output: Output,
    algorithm: Annotated[str, typer.Option(metavar="lanczos|power", help="How λ is found.")] = "lanczos",
    rtol: Annotated[float, typer.Option(help="Relative error of λ at which to stop.")] = 0.05,
    max_products: Annotated[
        int, typer.Option(help="End λ's search after so many products; checks add a few.")
    ] = 40,
    operator: Annotated[
        str,
        typer.Option(
            metavar="hessian|gauss-newton|central-differences",
            help="The matrix measured; central-differences: the Hessian from gradients alone.",
        ),
    ] = "hessian",
    bracket: Annotated[
        bool, typer.Option("--bracket", help="Closed-form bounds of λ beside it (plain LoRA, B = 0).")
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(metavar="K", help="The K largest eigenvalues too, each as often as it occurs."),
    ] = None,
    density: Annotated[
        bool, typer.Option("--density", help="The whole spectrum's density too (dozens of products).")
    ] = False,
    per_module: Annotated[
        bool, typer.Option("--per-module", help="λ of each adapted module by itself too (takes long).")
    ] = False,
    checkpoint: options.Checkpoint = None,
) -> int:
    """Measure the loss Hessian's largest eigenvalue."""
    from ..measure import ALGORITHMS, OPERATORS, Curvature
    from ..prepare import prepare
    from ..rows import SpectrumRow
    from ..spectrum.stopping import check_stopping
    from . import session, spectra, tables

    if algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", algorithm, ALGORITHMS)
    if operator not in OPERATORS:
        raise unknown_name("operator", operator, OPERATORS)
    check_stopping(rtol, max_products)
    if top is not None:
        check_counts(top=top)
    if bracket and not any(map(spectra.may_be_bracketed, settings)):
        raise RequestError(
            f"--bracket is for {spectra.BRACKETED_IN_WORDS}, not for "
            f"{', '.join(one.method for one in settings)}: leave it out"
        )
    if operator == "gauss-newton" and (bracket or per_module):
        raise RequestError(
            "--bracket and --per-module measure the Hessian, not its Gauss-Newton part: leave out --operator "
            "gauss-newton, or run them by themselves"
        )
    if checkpoint is not None and algorithm != "lanczos":
        raise RequestError(f"--checkpoint keeps the state of Lanczos, not of {algorithm!r}: leave one out")
    if checkpoint is not None:
        check_writable(checkpoint, "--checkpoint", folder=True)
    check_overwriting([("--checkpoint", checkpoint), ("--json", output.json)], (), settings)
    request = spectra.Request(rtol, max_products, algorithm, operator, bracket, top, density, per_module)

    def work(turn: Turn) -> SpectrumRow:
        prepared = prepare(turn.setting, turn.loaded, turn.data)
        return spectra.measure(turn.setting, prepared, request, turn.progress, turn.checkpoints)

    def failed(setting: Setting, reason: str) -> SpectrumRow:
        asked = dataclasses.asdict(request)
        return SpectrumRow.of(setting.method, Curvature.failed(reason), request=asked)

    return session.each_method(settings, output, work, failed, tables.spectrum_table, checkpoint)
