"""Numbers in the few digits that are known of them."""

from __future__ import annotations


def rate(value: float | None) -> str:
    """A learning rate or eigenvalue in two digits: 3.1e-3."""
    if value is None:
        return "–"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def number(value: float | None, digits: int = 3) -> str:
    """An eigenvalue, or with two digits its error."""
    return "–" if value is None else f"{value:.{digits}g}".replace("e+0", "e").replace("e+", "e")


def percent(value: float) -> str:
    """A share in whole percent, or a smaller one in its first digit."""
    return f"{value:.0%}" if value >= 0.01 or value == 0 else f"{100 * value:.1g}%"
