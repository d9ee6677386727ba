"""From measured quantities to a learning rate and its range, by the law that has all it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import HessianLRError
from .calibration import Calibration
from .law import OUTSIDE, Quantities, Rate, widened

PROBE = "probe"
# Each predictor's law, and those that take its place where one of its quantities does not exist.
FALLBACKS = {
    "combined": ("combined", "adam", "eigenvalue"),
    "adam": ("adam",),
    "eigenvalue": ("eigenvalue",),
    PROBE: (PROBE, "adam"),
}
_FALLEN_BACK = "predicted by the law "
# How the note begins on steps that nobody gave.
ASSUMED = "predicted for a run of "


def rate(predictor: str, constants: Calibration, quantities: Quantities) -> Rate | None:
    """The predictor's learning rate, or None if no law of its has all it needs."""
    for name in FALLBACKS[predictor]:
        law = getattr(constants, name)
        if law is None:
            continue
        known = {key: getattr(quantities, key) for key in {**law.exponents, **law.domain}}
        if any(known[key] is None for key in law.exponents):
            continue
        # Of what is not known it cannot be said whether it lies outside.
        known = {key: value for key, value in known.items() if value is not None}
        try:
            lr, factor = law(**known), law.range_factor(**known) * quantities.slack
        except OverflowError:
            lr, factor = math.inf, math.inf
        if not (0 < lr < math.inf and lr / factor > 0 and lr * factor < math.inf):
            raise HessianLRError(
                f"the law {name!r} of calibration {constants.version!r} gives no learning rate here: {lr:g}, "
                f"within a factor of {factor:g}; are its exponents right?"
            )
        notes = []
        if name != predictor:
            notes.append(f"{_FALLEN_BACK}{name!r}: the law {predictor!r} lacks a quantity here")
        if outside := law.outside(**known):
            notes.append(widened(outside))
        return Rate(lr, factor, tuple(notes))
    return None


def of_no_law(notes: Iterable[str]) -> list[str]:
    """A prediction's notes without those on the law and the run that it was made by."""
    return [note for note in notes if not note.startswith((_FALLEN_BACK, OUTSIDE, ASSUMED))]
