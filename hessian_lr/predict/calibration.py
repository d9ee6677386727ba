"""The constants that turn a measured eigenvalue into a learning rate, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

from ..errors import unknown_name
from ..records import Record, read_json
from .law import PowerLaw, Quantities
from .transfer import Transfer


@dataclass(frozen=True)
class Calibration(Record):
    """One law for each predictor, under a version.

    Attributes:
        schema: Format of the file, 1.
        version: Names the file in predictions made with it.
        combined: η̂ from all of the below.
        adam: η̂ from 38/λ_P (quantity ``lr_stability``) and the critical learning rate at the start
            (``lr_critical_start``), ``batch_size`` and ``steps``.
        eigenvalue: η̂ from λ at initialization (``lr_eigenvalue``), ``batch_size`` and ``steps``.
        probe: η̂ from short runs (``lr_probe``) and 38/λ_P; None in files of versions before 2026.11-g.
        transfer: From one setting's measured best learning rate to another's.
    """

    schema: int
    version: str
    combined: PowerLaw
    adam: PowerLaw
    eigenvalue: PowerLaw
    transfer: Transfer
    probe: PowerLaw | None = None


def load_calibration(path: str | Path | None = None) -> Calibration:
    """The calibration in ``path``, or the one that comes with the package.

    Raises:
        RequestError: the file is missing or is not a calibration.
    """
    if path is not None:
        found = Calibration.read(path)
        known = [one.name for one in fields(Quantities)]
        for law in filter(None, (found.combined, found.adam, found.eigenvalue, found.probe)):
            for name in (*law.exponents, *law.domain):
                if name not in known:
                    raise unknown_name("quantity", name, known)
        return found
    with resources.as_file(resources.files(__package__) / "calibration.json") as built_in:
        return Calibration.from_dict(read_json(built_in))
