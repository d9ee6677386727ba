"""What people see while they wait: one bar on standard error, and nothing of the libraries' own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from .digits import rate


class Progress:
    """One bar, if somebody is looking: on a terminal's standard error, or in a notebook; a context manager.

    Its methods have the shapes that the measurements and the sweep call back with.
    """

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
            # Results on standard output must not pass through this console.
            redirect_stdout=False,
            disable=quiet or not (console.is_terminal or _in_notebook(console)),
        )
        self._method, self._stage = "", ""
        self._task = self._bars.add_task("", total=None, detail="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def method(self, name: str, index: int, total: int) -> None:
        """Work on a method begins, the ``index``-th (from 1) of ``total``."""
        self._method = name if total == 1 else f"{name} ({index}/{total})"
        self.report("building", 0, 1, "")

    def report(self, stage: str, done: int, total: int, detail: str) -> None:
        """A prediction goes on."""
        if stage != self._stage:
            self._stage = stage
            self._bars.reset(self._task, total=total)
        self._bars.update(
            self._task, description=f"{self._method}: {stage}", completed=done, total=total, detail=detail
        )

    def say(self, text: str) -> None:
        """Lines on standard error, above the bar if there is one."""
        self._bars.console.print(text, markup=False, emoji=False, highlight=False)

    def sweep(self, done: int, planned: int, lr: float, last: float | None, *, stage: str = "runs") -> None:
        """A sweep goes on."""
        loss = "" if last is None else f", last loss {last:.3f}"
        self.report(stage, done, planned, f"learning rate {rate(lr)}{loss}")


def _in_notebook(console: Console) -> bool:
    """Whether a notebook can show a bar: rich draws it with ipywidgets, and warns at each turn without."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the model libraries' bars, log lines and deprecations off standard error; restore after."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", module=r"(accelerate|peft|torch|transformers|datasets)\b")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
