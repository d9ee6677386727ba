"""Numbers as a report writes them: as many digits as are known, and no more."""

from __future__ import annotations

import math

from .. import digits
from ..figures.style import times
from ..score import Score

ABSENT = "–"


def number(value: float | None) -> str:
    """A number in three digits, with a proper minus."""
    text = digits.number(value)
    return text.replace("-", "−", 1) if text.startswith("-") else text


def measured(value: float | None, error: float | None) -> str:
    """A value with its standard error: the error to one digit (two if it starts with 1), the value as far.

    The value keeps two digits, however large the error; without an error it has three.
    """
    if value is None or not error:
        return number(value)
    place = math.floor(math.log10(abs(error)))
    if abs(error) < 2 * 10.0**place:
        place -= 1
    if value:
        place = min(place, math.floor(math.log10(abs(value))) - 1)
    if place < -4 or abs(value) >= 1e5:
        return f"{number(value)} ± {error:.1g}"
    decimals = max(-place, 0)
    text = f"{round(value, -place):.{decimals}f} ± {round(error, -place):.{decimals}f}"
    return text.replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """Two learning rates; an end that is not known is left open."""
    if low is None and high is None:
        return ABSENT
    if low is None or high is None:
        return f"up to {digits.rate(high)}" if low is None else f"from {digits.rate(low)}"
    return f"{digits.rate(low)} to {digits.rate(high)}"


def factor(value: float | None) -> str:
    """How many times as large, in two digits."""
    return ABSENT if value is None else times(value)


def share(value: float | None) -> str:
    """A share in per cent: 0.1%, 25%."""
    return ABSENT if value is None else f"{value:.1%}" if abs(value) < 0.095 else f"{value:.0%}"


def regret(row: Score) -> str:
    """A scored row's regret, with its error where several seeds tell of one: 2.1% ± 1.4%."""
    told = share(row.regret)
    return told if row.noise is None or told == ABSENT else f"{told} ± {share(row.noise)}"


def duration(seconds: float | None) -> str:
    """A time in seconds, minutes or hours, to two or three digits."""
    if seconds is None:
        return ABSENT
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.{0 if seconds >= 10 else 1}f} s"


def count(value: float) -> str:
    """A large number to three digits, with its thousands set apart: 1,230."""
    if value < 100:
        return f"{value:.0f}"
    size = 10 ** (math.floor(math.log10(value)) - 2)
    return f"{round(value / size) * size:,.0f}"
