"""What every command does that works on models: load, take each method in turn, tell the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .. import results
from ..allocator import keep_freed_memory
from ..checkpoints import Checkpoints
from ..data import TaskData
from ..distributed import require_shared
from ..errors import HessianLRError, RequestError
from ..models import LoadedModel
from ..progress import Progress, quiet_libraries
from ..results import Document, R
from ..setting import Setting
from ..study.loading import load
from . import terminal
from .options import Output

Table = Callable[[Sequence[R]], None]


@dataclass(frozen=True)
class Turn:
    """What a command works with when a method has its turn.

    Attributes:
        setting: The method's setting.
        loaded, data: Its model and data, as all methods share them.
        progress: Shows how it goes on.
        checkpoints: Where states are kept; None: nowhere.
    """

    setting: Setting
    loaded: LoadedModel
    data: TaskData
    progress: Progress
    checkpoints: Checkpoints | None


def each_method(
    settings: list[Setting],
    output: Output,
    work: Callable[[Turn], R],
    failed: Callable[[Setting, str], R],
    table: Table[R],
    checkpoint: str | None,
) -> int:
    """Measure each method and tell the results; one that fails does not keep the others from theirs.

    States are kept in the folder ``checkpoint`` until all results are written: a kill while another method is
    measured costs none of them.

    Returns:
        The exit status: 2 where a method was refused beside others, else as ``tell`` has it.

    Raises:
        RequestError: the only method was refused.
    """
    rows: list[R] = []
    refused = 0
    kept: list[Checkpoints] = []
    with quiet_libraries():
        keep_freed_memory()
        loaded, task = load(settings, quiet=output.quiet)

        def one(setting: Setting, progress: Progress) -> R:
            nonlocal refused
            try:
                here = None if checkpoint is None else Checkpoints(checkpoint, setting)
                row = work(Turn(setting, loaded, task, progress, here))
            except HessianLRError as error:
                if isinstance(error, RequestError):
                    if len(settings) == 1:
                        raise
                    refused = error.exit_status
                require_shared(error)
                return failed(setting, str(error))
            if here is not None:
                kept.append(here)
                row = replace(row, notes=(*row.notes, *here.notes))
            return row

        with Progress(output.quiet) as progress:
            for index, setting in enumerate(settings, 1):
                progress.method(setting.method, index, len(settings))
                rows.append(one(setting, progress))
    status = tell(results.document(settings, rows, task.notes), output, table)
    status = refused or status
    for saved in kept if status == 0 else ():
        saved.clear()
    return status


def tell(document: Document[R], output: Output, table: Table[R]) -> int:
    """Write the JSON, show the table and the notes of its rows; the exit status is 1 if a method failed."""
    with output.written(document.to_dict()):
        if output.tables:
            table(document.rows)
        for note in () if output.quiet else document.notes:
            terminal.say(f"data: {note}")
        for row in document.rows:
            # Why a method failed is no mere note.
            for note in row.notes if row.status == "failed" or not output.quiet else ():
                terminal.say(f"{row.method}: {note}")
    return 1 if any(row.status == "failed" for row in document.rows) else 0
