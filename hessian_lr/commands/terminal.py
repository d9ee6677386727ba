"""How the terminal is written to: tables on standard output, notes on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table on standard output: the first ``left`` columns to the left, the others to the right.

    The cells are plain text; a newline in one starts another line. Colour only where a terminal
    shows it and ``NO_COLOR`` is not set. Where the terminal is too narrow, each row is a list of its cells.
    """
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        # Only a last column of prose may be broken into lines.
        drawn.add_column(
            column, justify="left" if index < left else "right", no_wrap=index != left - 1 or left == 1
        )
    for row in rows:
        drawn.add_row(*row)
    console = Console(markup=False, emoji=False, highlight=False)
    unbounded = console.options.update(width=10 * console.width)
    if left == 1 and console.measure(drawn, options=unbounded).maximum > console.width:
        drawn.padding = (0, 0, 0, 0)  # rather narrow gaps than cells cut short
        if console.measure(drawn, options=unbounded).maximum > console.width:
            _lists(columns, rows)
            return
    console.print(drawn)


def _lists(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    width = max(map(len, columns[1:]))
    for row in rows:
        print(row[0])
        for column, cell in zip(columns[1:], row[1:], strict=True):
            print(f"  {column:<{width}}  {' '.join(cell.split())}")
