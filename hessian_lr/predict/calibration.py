"""The constants that turn a measured eigenvalue into a learning rate, and where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

from ..errors import RequestError, unknown_name
from ..records import Record, read_json
from .law import PowerLaw, Quantities
from .transfer import Transfer

SCHEMA = 1
# What each law may be made of: the run's own quantities, and what its predictor measures.
_RUN = ("batch_size", "steps")
_ADAM, _START = ("lr_stability", "lr_critical_start"), ("lr_eigenvalue", "lr_sharpness")
_MADE_OF = {
    "combined": (*_RUN, *_ADAM, *_START),
    "adam": (*_RUN, *_ADAM),
    "eigenvalue": (*_RUN, *_START),
    # Turned round, it tells where short runs are best; nothing else is known there.
    "probe": ("lr_probe", "lr_stability"),
}
# A domain may be of all quantities; of the slack, which widens the range, there is none.
_BOUNDED = tuple(one.name for one in fields(Quantities) if one.name != "slack")


@dataclass(frozen=True)
class Calibration(Record):
    """One law for each predictor, under a version.

    Attributes:
        schema: Format of the file, ``SCHEMA``.
        version: Names the file in predictions made with it.
        combined: η̂ from all of the below.
        adam: η̂ from 38/λ_P (quantity ``lr_stability``) and the critical learning rate at the start
            (``lr_critical_start``), ``batch_size`` and ``steps``.
        eigenvalue: η̂ from λ at initialization (``lr_eigenvalue``), ``batch_size`` and ``steps``.
        probe: η̂ from short runs (``lr_probe``) and 38/λ_P; None in files of versions before 2026.11-g.
        transfer: From one setting's measured best learning rate to another's.

    Raises:
        RequestError: the schema is another, or a law is of what its predictor does not have.
    """

    schema: int
    version: str
    combined: PowerLaw
    adam: PowerLaw
    eigenvalue: PowerLaw
    transfer: Transfer
    probe: PowerLaw | None = None

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise RequestError(
                f"these constants have the schema {self.schema}, not {SCHEMA}: update hessian-lr, or fit "
                "them again with `hessian-lr calibrate`"
            )
        for name, quantities in _MADE_OF.items():
            law = getattr(self, name)
            if law is not None:
                _check(name, law, quantities)
        if self.probe is not None and not self.probe.exponents.get("lr_probe"):
            raise RequestError("the law 'probe' needs an exponent of lr_probe, and it must not be 0")


def load_calibration(path: str | Path | None = None) -> Calibration:
    """The calibration in ``path``, or the one that comes with the package.

    Raises:
        RequestError: the file is missing or is not a calibration.
    """
    if path is not None:
        return Calibration.read(Path(path).expanduser())
    with resources.as_file(resources.files(__package__) / "calibration.json") as built_in:
        return Calibration.from_dict(read_json(built_in))


def _check(name: str, law: PowerLaw, quantities: Sequence[str]) -> None:
    """Refuse a law of what its predictor does not have, or of nothing measured."""
    parts: dict[str, tuple[Iterable[str], Sequence[str]]] = {
        "exponents": (law.exponents, quantities),
        "references": (law.references, quantities),
        "spreads": (law.spreads, ("scale", *quantities)),
        "domain": (law.domain, _BOUNDED),
    }
    for part, (named, known) in parts.items():
        for quantity in named:
            if quantity not in known:
                raise unknown_name(f"quantity in the {part} of the law {name!r}:", quantity, known)
    if set(law.exponents) <= set(_RUN):
        measured = [quantity for quantity in quantities if quantity not in _RUN]
        raise RequestError(
            f"the law {name!r} has no exponent of anything measured; give it one of {', '.join(measured)}"
        )
