"""What each command's results look like as a table, and in a line of advice."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..digits import number, percent, rate
from ..verdict import GOOD, best_loss, no_best, verdict
from .terminal import table

if TYPE_CHECKING:
    from ..alignment import Alignment
    from ..measure import ModuleSpectrum, TopEigenvalues
    from ..predict import Calibration
    from ..rows import MeasuredRow, PredictionRow, RunRow, ScoredRow, SpectrumRow, SweepRow
    from ..spectrum import SpectralDensity

_LABEL = 36  # characters of a setting's label in a line
_WIDTH = 100  # of a line of numbers


def span(low: float | None, high: float | None) -> str:
    """Two ends; an open one is left out."""
    if low is None and high is None:
        return ""
    return f"{'' if low is None else rate(low)}…{'' if high is None else rate(high)}"


def predict_table(rows: Sequence[PredictionRow]) -> None:
    """What ``predict`` found, a row a method."""
    adam = any(row.lambda_preconditioned is not None for row in rows)
    table(
        ("method", "λ_P" if adam else "λ", "learning rate", "range", "gradients", "seconds", "status"),
        [
            (
                row.method,
                _preconditioned(row) if adam else number(row.lambda_max) + _error("\n", row.sampling_error),
                rate(row.lr),
                span(row.lr_low, row.lr_high),
                f"{row.gradient_equivalents:.0f}",
                f"{row.seconds:.1f}",
                row.status,
            )
            for row in rows
        ],
    )


def spectrum_table(rows: Sequence[SpectrumRow]) -> None:
    """What ``spectrum`` found, a line a method; then, if asked for, its modules and its density."""
    columns = ["method", "λ", "≤", "±", "held out", "λ_min", "products", "seconds", "status"]
    bracket = any(row.bracket for row in rows)
    if bracket:
        columns.insert(2, "bracket")
    lines = []
    for row in rows:
        line = [
            row.method,
            number(row.lambda_max),
            number(row.lambda_upper),
            number(row.sampling_error),
            number(row.held_out),
            number(row.lambda_min),
            str(row.matvecs),
            f"{row.seconds:.1f}",
            row.status,
        ]
        if bracket:
            ends = row.bracket
            line.insert(2, "–" if ends is None else f"{number(ends.lower)}…{number(ends.upper)}")
        lines.append(line)
    table(columns, lines)
    for row in rows:
        if row.top is not None:
            _top_lines(row.method, row.top)
        if row.density is not None:
            _density_line(row.method, row.density)
        if row.modules is not None:
            _modules_table(row.method, row.modules)


def _top_lines(method: str, found: TopEigenvalues) -> None:
    values = " ".join(map(number, found.values))
    print(textwrap.fill(f"{method}: largest eigenvalues {values}", _WIDTH, subsequent_indent="  "))
    print(f"  residuals at most {percent(found.relative_residual)} of the largest, {found.status}")


def _density_line(method: str, found: SpectralDensity) -> None:
    ends = [node for probe in found.nodes for node in probe]
    print(
        f"{method}: trace {number(found.trace)} ± {number(found.trace_error)} over "
        f"{found.size:,} eigenvalues, seen from {number(min(ends))} to {number(max(ends))}; "
        "the density itself is in the JSON"
    )


def _modules_table(method: str, found: ModuleSpectrum, most: int = 10) -> None:
    modules = sorted(found.modules, key=lambda one: -(one.lambda_max or 0.0))
    table(
        (f"{method}: module", "λ", "≤", "products", "status"),
        [
            (
                one.kind if one.layer is None else f"{one.layer}.{one.kind}",
                number(one.lambda_max),
                number(one.lambda_upper),
                str(one.products),
                one.status,
            )
            for one in modules[:most]
        ],
    )
    if len(modules) > most:
        print(f"The {most} sharpest of {len(modules)} modules; the JSON has all.")


def validate_table(rows: Sequence[ScoredRow]) -> None:
    """Prediction against sweep, a row a method."""
    table(
        ("method", "λ", "λ_P", "predicted", "best", "factor", "regret", "band"),
        [
            (
                row.method,
                _with_error(row),
                _preconditioned(row),
                _predicted(row),
                _best(row),
                *(("–", "–", "–") if row.censored else _scored(row)),
            )
            for row in rows
        ],
    )


def _scored(row: ScoredRow) -> tuple[str, str, str]:
    return (
        "–" if row.factor_error is None else f"{row.factor_error:.2f}×",
        "–" if row.regret is None else f"{row.regret:.1%}{_noise(row)}",
        {True: "yes", False: "no", None: "–"}[row.inside_band],
    )


def _noise(row: ScoredRow) -> str:
    return "" if row.noise is None else f"\n±{row.noise:.1%}"


def advice(rows: Sequence[ScoredRow]) -> str:
    """One line on what to do with the result of ``validate``."""
    found = verdict(rows)
    if not found.ranked:
        if found.diverged:
            return "Every run diverged: run smaller learning rates."
        return "No learning rate lowered the held-out loss: check the data, or run more steps."
    best = found.ranked[0]
    lowest = rate(_lowest(best.runs, best_loss(best)))
    told = f"Lowest held-out loss {best.best_loss:.3f}: {best.method}, run at {lowest}"
    if best.censored:
        return f"{told}, the edge of its sweep: run more learning rates."
    if not found.judged:
        return f"{told}."
    return f"{told}. Predictions within {GOOD}× of the best learning rate: {found.good} of {found.judged}."


def _lowest(runs: Sequence[RunRow], loss: float) -> float:
    """The learning rate whose runs ended lowest; ``best_lr`` may lie between two."""
    ends: dict[float, list[float]] = {}
    for run in runs:
        if run.final_loss is not None:
            ends.setdefault(run.lr, []).append(run.final_loss)
    return min(ends, key=lambda lr: abs(statistics.mean(ends[lr]) - loss))


def sweep_table(rows: Sequence[SweepRow]) -> None:
    """What a sweep found, a line a setting."""
    predicted = any(row.prediction_status for row in rows)
    lines = []
    for row in rows:
        done, missing = len(row.runs), len(row.missing)
        planned = f"{done + missing}{'+' if missing and row.lrs == 'auto' else ''}"
        lines.append(
            (
                textwrap.fill(row.label, _LABEL),
                f"{done}/{planned}",
                _best(row) if decided(row) else "–",
                "–" if row.best_loss is None else f"{row.best_loss:.3f}",
                *(_beside(row) if predicted else ()),
                row.status,
            )
        )
    columns = ("λ", "predicted", "factor") if predicted else ()
    table(("setting", "runs", "best", "loss", *columns, "status"), lines)


def _beside(row: SweepRow) -> tuple[str, str, str]:
    """λ, prediction and factor of a setting of a sweep."""
    if row.prediction_status is None:
        return "–", "–", "–"
    factor = "–" if row.censored else _scored(row)[0]
    return number(row.lambda_max), _predicted(row), factor


def align_table(alignment: Alignment) -> None:
    """How eigenvalues and best learning rates go together, with a sentence in words."""
    interval = (
        "" if alignment.slope_low is None else f"{alignment.slope_low:.2f} to {alignment.slope_high:.2f}"
    )
    lines = [
        ("slope of log best learning rate on log λ", _decimals(alignment.slope), interval, "-1"),
        ("Kendall's tau of 1/λ and best learning rate", _decimals(alignment.kendall_tau), "", "1"),
        ("Spearman's rank correlation", _decimals(alignment.spearman), "", "1"),
        ("R²", _decimals(alignment.r_squared), "", "1"),
    ]
    table((f"{alignment.points} settings", "found", "95% interval", "classical"), lines)
    print(alignment_in_words(alignment))


def alignment_in_words(alignment: Alignment) -> str:
    """What the slope says about the classical theory, η ∝ 1/λ."""
    low, high = alignment.slope_low, alignment.slope_high
    if alignment.slope is None:
        return "Too few different settings for a slope: at least three are needed."
    if low is None or high is None:
        return "All best learning rates are equal: how far the slope is known cannot be told from them."
    if low <= -1 <= high:
        undecided = ", but neither can no relation at all be" if high >= 0 else ""
        return f"The classical slope of -1 cannot be ruled out{undecided}."
    if high < -1:
        return "Best learning rates fall faster with the eigenvalue than classical theory's 1/λ."
    if high < 0:
        return "Best learning rates fall with the eigenvalue, but more slowly than classical theory's 1/λ."
    if low > 0:
        return "Best learning rates rise with the eigenvalue, against classical theory."
    return "No relation between eigenvalue and best learning rate can be told from these settings."


def calibration_table(calibration: Calibration) -> None:
    """The constants of all laws."""
    from ..predict.fit import LAWS

    lines = []
    for name in LAWS:
        law = getattr(calibration, name)
        if law is None:
            continue
        exponents = "\n".join(f"{key}^{value:.3g}" for key, value in law.exponents.items())
        lines.append((name, f"{law.scale:.3g}", exponents, f"{law.range_factor():.2f}×", str(law.settings)))
    table(("law", "scale", "exponents", "range", "settings"), lines)


def catalogue(lists: dict[str, list[dict[str, Any]]]) -> None:
    """What can be named, list by list."""
    for what, entries in lists.items():
        lines = []
        for entry in entries:
            source = f" ({entry['source']})" if entry.get("source") else ""
            lines.append((entry["name"], entry.get("summary", "") + source))
        table((what, ""), lines, left=2)


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _preconditioned(row: MeasuredRow) -> str:
    return number(row.lambda_preconditioned) + _error("\n", row.sampling_error_preconditioned)


def _with_error(row: ScoredRow) -> str:
    if row.lambda_max is None:
        return "failed"
    upper = "" if row.lambda_upper is None else f"\n≤ {number(row.lambda_upper)}"
    return number(row.lambda_max) + _error(" ", row.sampling_error) + upper


def _error(gap: str, value: float | None) -> str:
    return "" if value is None else f"{gap}±{number(value, 2)}"


def decided(row: ScoredRow) -> bool:
    """Whether a sweep tells a best learning rate, or that none learned, which missing runs might have."""
    return row.best_lr is not None or row.status == "complete"


def _predicted(row: ScoredRow) -> str:
    if row.predicted_lr is not None:
        return _two(row.predicted_lr, row.predicted_low, row.predicted_high)
    return "–" if row.predictor is None else "failed"  # of gradient descent there is no prediction


def _best(row: ScoredRow) -> str:
    if not row.runs:
        return "failed"
    if row.best_lr is None:
        return no_best(row)
    text = _two(row.best_lr, row.band_low, row.band_high)
    return f"{text}\nat the edge" if row.censored else text


def _two(lr: float, low: float | None, high: float | None) -> str:
    ends = span(low, high)
    return rate(lr) + (f"\n{ends}" if ends else "")
