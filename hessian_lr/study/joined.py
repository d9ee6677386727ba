"""What stands in a folder's ``validate.json``: the rows of several calls, where all but the method is one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..atomic import locked, write_bytes
from ..errors import DamagedError, RequestError
from ..figures.rows import eigenvalue_points, sweep_panel
from ..records import read_json, write_sealed
from ..results import Document
from ..rows import ScoredRow
from ..setting import Setting
from ..sweep.run import precision_name
from ..validated import read_validated

_GRID = ("lrs", "seeds")


@dataclass(frozen=True)
class Earlier:
    """What an earlier call left in the file.

    Attributes:
        rows: Its rows, by method, with the versions they are of where those are not the document's.
        outdated: They are of other learning rates or seeds: they go when all are there anew.
        damaged: Where what cannot be read is to be kept, if the file is damaged.
        own_notes: What it says itself of its data.
        notes: What a reader should know of the file.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    outdated: bool = False
    damaged: Path | None = None
    own_notes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def earlier(path: Path, now: dict[str, Any]) -> Earlier:
    """What stands where the document ``now`` is to be written.

    Raises:
        RequestError: results that would be lost: of another setting, data or model, a method that is not
            asked for at other learning rates or seeds, or a whole file that cannot be read.
    """
    if not path.exists():
        return Earlier()
    try:
        rows = read_validated([path])
        # What the figures will be drawn from.
        eigenvalue_points(rows)
        for one in rows:
            sweep_panel(one)
        document = read_json(path)
        before, after = _identity(document, now), _identity(now, now)
        versions, own_notes = document.get("versions"), tuple(document.get("notes") or ())
    except DamagedError as error:
        aside = path.with_name(f"{path.name}.damaged-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}")
        note = f"{path} was damaged and is written anew; {aside.name} keeps what it held: {error}"
        return Earlier(damaged=aside, notes=(note,))
    except (RequestError, LookupError, TypeError, AttributeError) as error:
        said = f"{error}" if isinstance(error, RequestError) else f"{type(error).__name__} {error}"
        raise RequestError(
            f"{path} holds results that cannot be read here, and would be lost: {said}. Go on with the "
            "version of hessian-lr that wrote it, name another folder with --out, or move that file away"
        ) from error
    differing = [name for name in before | after if before.get(name) != after.get(name)]
    other = {} if versions == now["versions"] else {"versions": versions}
    known = {row["method"]: other | row for row in document["results"]}
    found = Earlier(known, bool(differing), own_notes=own_notes)
    again = found.rows.keys() <= set(now["setting"]["methods"])
    if differing and not (again and set(differing) <= set(_GRID)):
        told = ", ".join(f"{name} {before.get(name)}, now {after.get(name)}" for name in differing)
        raise RequestError(
            f"{path} holds other results ({told}), which would be lost: name another folder with --out, or "
            "delete that file (the runs beside it stay, and those that fit are found again)"
        )
    return found


def write_joined(path: Path, document: Document[ScoredRow]) -> dict[str, str]:
    """Write the document with the earlier rows of methods that it has none of; all stay in their order.

    Several processes may: each finds the others' rows.

    Returns:
        The methods of the document that the file does not hold now, each with the reason.

    Raises:
        RequestError: as ``earlier``.
        HessianLRError: the file cannot be written.
    """
    with locked(path):
        return _joined(path, document.to_dict())


def _joined(path: Path, document: dict[str, Any]) -> dict[str, str]:
    found, fresh = earlier(path, document), {row["method"]: row for row in document["results"]}
    worse = [name for name, row in fresh.items() if _is_worse(row, found.rows.get(name, row))]
    kept = dict.fromkeys(worse, f"{path} keeps the row of an earlier call, which tells more")
    if found.outdated and (kept or not found.rows.keys() <= fresh.keys()):
        # A call that is killed half-way, or fails, leaves the file whole.
        grid = "of other learning rates or seeds, until every method has a row anew"
        return dict.fromkeys(fresh, f"{path} keeps the rows of an earlier call, {grid}") | kept
    if found.damaged:
        write_bytes(found.damaged, path.read_bytes())
    rows = found.rows | {name: row for name, row in fresh.items() if name not in kept}
    notes = document["notes"] if rows == fresh else [*found.own_notes, *document["notes"]]
    methods = list(dict.fromkeys([*found.rows, *document["setting"]["methods"]]))
    joined = {
        "setting": document["setting"] | {"methods": methods},
        "results": [rows[name] for name in methods if name in rows],
        "notes": list(dict.fromkeys(notes)),
    }
    write_sealed(path, document | joined)
    return kept


def _is_worse(row: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """Whether a row has failed, as the earlier one has not, or not with so few runs."""
    if row["status"] != "failed":
        return False
    return earlier.get("status") != "failed" or len(row["runs"]) < len(earlier["runs"])


def _identity(document: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What rows of one file must share."""
    values = {**document["setting"], "method": document["setting"]["methods"][0]}
    del values["methods"]
    # "auto" is what this machine takes, wherever the file was written.
    setting = replace(Setting.from_dict(values), device=now["setting"]["device"])
    # Model and data are told by the two fingerprints, so that a folder that moved keeps its rows.
    identity = setting.training_identity(contents=False)
    del identity["method"]  # a matter of the row
    identity |= {"samples": setting.samples, "dtype": precision_name(setting)}
    told = {name: document.get(name) for name in (*_GRID, "data_digest", "model_fingerprint")}
    # In whatever order earlier versions were given them.
    return identity | {name: sorted(v) if isinstance(v, list) else v for name, v in told.items()}
