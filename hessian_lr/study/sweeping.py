"""A sweep over many settings, asked for by a file or from Python: checked, costed, made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from .. import data
from ..atomic import write_bytes
from ..errors import RequestError
from ..files import SWEEP_FILE
from ..methods import method_of
from ..overwriting import check_overwriting, check_writable
from ..progress import Progress, quiet_libraries
from ..sweep.engine import Local
from ..sweep.grid import Grid, expand
from ..sweep.nodes import as_yaml
from ..sweep.request import read
from ..sweep.source import Source
from ..validated import Validated, swept_row
from .grids import Asked, Job, Plan
from .measured import Predicting
from .predicting import check_predictor, constants_for
from .sweep_csv import TABLE

GRID_FILE = "grid.yaml"
_HEAD = "# What hlr.study.sweep was asked for here; `hessian-lr sweep` takes it, too.\n"


def sweep(
    grid: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    predictor: str | None = None,
    calibration: str | Path | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> list[Validated]:
    """Run every setting of a grid, as ``hessian-lr sweep`` does; the same call goes on after a kill.

    Args:
        grid: A YAML file, or a mapping with its keys: ``{"method": ["lora", "pissa"], "rank": [4, 16], "lr":
            "auto"}``. Lists may be arrays; of names, as target modules are, a tuple or a set is one value.
        out: Folder of all results, which ``read`` and the commands find there again. A mapping is written
            there as ``grid.yaml``, so that the command can go on with it; paths stay as they were given.
        predictor: Measure each setting as well and score this one: ``"combined"``, ``"adam"``,
            ``"eigenvalue"`` or ``"probe"``; None: runs alone.
        calibration: File of constants that ``hessian-lr calibrate`` wrote; None: the package's.
        limit: Make at most so many runs; 0: only the table of what is there.
        quiet: No progress bar, which a terminal shows, and a notebook that has ipywidgets.

    Returns:
        What was found of each setting, in the order of the grid's axes, also of those without a run: their
        ``row.status`` is ``"missing"``, or ``"failed"`` with the reason first among ``row.notes``.

    Raises:
        RequestError: a key or a value is wrong, a setting does not fit its model or data, or ``out`` is not
            a place for results.
        HessianLRError: a model or data cannot be loaded, or the folder cannot be written.
    """
    asked = checked(grid, out, predictor=predictor, calibration=calibration, limit=limit)
    with opened(asked, quiet) as (job, source, _):
        if isinstance(grid, Mapping):
            write_bytes(Path(asked.grid.path), (_HEAD + as_yaml(grid)).encode())
        document = job.run(job.plan(), Local(source))
    file = asked.out / SWEEP_FILE
    return [swept_row(file, row, document.notes) for row in document.rows]


def plan(
    grid: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    predictor: str | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> Plan:
    """Count what ``sweep`` would do, and time it; no run is made.

    Where ``out`` has no finished runs of the same kind, a few steps are timed. Predictions that are there
    already are counted, too.

    Raises:
        RequestError, HessianLRError: as ``sweep``.
    """
    with opened(checked(grid, out, predictor=predictor, limit=limit), quiet) as (job, _, _):
        return job.plan()


def checked(
    grid: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    predictor: str | None = None,
    calibration: str | Path | None = None,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    called: str = "out",
    written: Sequence[tuple[str, str | None]] = (),
) -> Asked:
    """What ``sweep`` is asked for, refused before anything is loaded where it can be.

    Args:
        grid, out, predictor, calibration, limit: As ``sweep`` has them.
        shard: (i, N): make only the i-th of N shares.
        called: What messages call ``out``.
        written: What else is written, as ``check_overwriting`` has it.

    Raises:
        RequestError: as ``sweep``.
    """
    option = called.removesuffix("out")  # how the others of the call are written, too
    if not isinstance(grid, (str, Path, Mapping)):
        raise RequestError(f"a grid is a YAML file or a mapping with its keys, not a {type(grid).__name__}")
    if limit is not None and (not isinstance(limit, Integral) or isinstance(limit, bool) or limit < 0):
        raise RequestError(f"{option}limit takes a whole number of at least 0, not {limit!r}")
    if calibration is not None and predictor is None:
        raise RequestError(
            f"{option}calibration is for what is predicted: name a {option}predictor, or leave it out"
        )
    place = Path(out).expanduser()
    check_writable(place, called, folder=True)
    outputs = [place, place / SWEEP_FILE, place / TABLE]
    if isinstance(grid, Mapping):
        file, made = None, replace(_grid(grid), path=str(place / GRID_FILE))
        outputs.append(_own_file(place))
    else:
        file = str(Path(grid).expanduser())
        made = _grid(file)
    constants_file = None if calibration is None else str(calibration)
    places = [(called, str(path)) for path in outputs]
    settings = [one.setting for one in made.wanted]
    check_overwriting([*places, *written], [file, constants_file], settings)
    predicting = None
    if predictor is not None:
        for setting in settings:
            check_predictor(predictor, [setting])
        predicting = Predicting(predictor, constants_for(predictor, constants_file), constants_file)
    return Asked(made, place, shard, None if limit is None else int(limit), predicting)


def _own_file(out: Path) -> Path:
    """Where the grid is written.

    Raises:
        RequestError: another's file is there.
    """
    path = out / GRID_FILE
    if path.is_dir() or (path.exists() and not path.read_bytes().startswith(_HEAD.encode())):
        raise RequestError(
            f"{path} is not of a grid that was given from Python, and would be overwritten: give that file "
            "as the grid, or results another folder"
        )
    return path


def _grid(asked: str | Mapping[str, Any]) -> Grid:
    """The settings, each known to be one that can be trained, their data to exist."""
    grid = expand(read(asked))
    for one in grid.wanted:
        try:
            method_of(one.setting)
        except RequestError as error:
            raise RequestError(f"{grid.path}: exclude {grid.label(one.setting)}: {error}") from error
    for name, fields in dict.fromkeys((one.setting.data, one.setting.fields) for one in grid.wanted):
        data.check(name, fields=fields)
    return grid


@contextmanager
def opened(asked: Asked, quiet: bool) -> Iterator[tuple[Job, Source, Progress]]:
    """The job, with what loads its models and what shows how it goes on."""
    source = Source(quiet)
    with quiet_libraries(), Progress(quiet) as progress:
        progress.method("sweep", 1, 1)
        yield Job(asked, source, progress), source, progress
