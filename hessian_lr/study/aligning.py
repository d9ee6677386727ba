"""Results beside classical theory: how best learning rates go with eigenvalues, in numbers and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from .. import figures
from ..alignment import Alignment
from ..alignment import align as fit
from ..errors import RequestError
from ..figures import EigenvaluePoint
from ..figures.rows import eigenvalue_points, sweep_panel
from ..validated import Validated, each_once, require_measured


def align(rows: Iterable[Validated]) -> Alignment:
    """Compare results with classical theory, η* ∝ 1/λ, as ``hessian-lr align`` does.

    Args:
        rows: Results of one optimizer. Those without λ, or without a best learning rate inside their sweep,
            are left out, and a setting that is there twice counts once.

    Raises:
        RequestError: they are of several optimizers, or none has both, for want of λ or of learning rates.
    """
    alignment, _, _ = compared(rows)
    return alignment


def compared(rows: Iterable[Validated]) -> tuple[Alignment, list[EigenvaluePoint], list[str]]:
    """As ``align``; with the points of the picture, and a note on each result that was found again.

    Raises:
        RequestError: as ``align``.
    """
    points, notes = _points(require_measured(list(rows)))
    used = [(p.eigenvalue, p.score.best_lr) for p in points if p.score.best_lr and not p.score.censored]
    if not used:
        raise RequestError(
            "none of these results has both a positive eigenvalue and a best learning rate inside its sweep; "
            "run `hessian-lr validate` with more learning rates"
        )
    return fit(*zip(*used, strict=True)), points, notes


def eigenvalue_figure(rows: Iterable[Validated]) -> Figure:
    """Draw best learning rate against λ, both logarithmic, beside the classical slope −1.

    Args:
        rows: Results of one optimizer; those without λ or a best learning rate are left out.

    Raises:
        RequestError: they are of several optimizers, or none is left.
    """
    return figures.eigenvalue_figure(_points(list(rows))[0])


def sweep_figure(rows: Iterable[Validated]) -> Figure:
    """Draw held-out loss against learning rate with what was predicted, a panel for each of ``rows``.

    Raises:
        RequestError: none of ``rows`` has a run.
    """
    return figures.sweep_figure([sweep_panel(one, one.row.name) for one in rows if one.row.runs])


def _points(rows: Sequence[Validated]) -> tuple[list[EigenvaluePoint], list[str]]:
    trained = {str(one.common.get("optimizer")): one.file for one in rows}
    if len(trained) > 1:
        raise RequestError(
            "learning rates of different optimizers do not compare: "
            + ", ".join(f"{file} has {name}" for name, file in trained.items())
            + "; name those of one of them"
        )
    counted, notes = each_once([one for one in rows if one.row.lambda_max is not None])
    return eigenvalue_points(counted), notes
