"""The page that lists the failures: its tables, made of what the commands printed."""

from __future__ import annotations

import re
from pathlib import Path

from .failures import FAILURES, Failure
from .running import PREFIX

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
BEGIN, END = "<!-- written by `python -m tests.provoked` -->\n", "<!-- as far as here -->\n"


def with_tables(page: str, said: dict[Failure, str]) -> str:
    """The page with tables of what was said between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, f"{PAGE} lacks its marks"
    return "".join((before, BEGIN, *(_table(group, said) for group in FAILURES), "\n", END, after))


def _table(group: str, said: dict[Failure, str]) -> str:
    lines = [
        f"\n## {group}\n",
        "| what is wrong | `hessian-lr …` | it prints | status |",
        "|---|---|---|---:|",
    ]
    for one in FAILURES[group]:
        text = said[one].removesuffix("\n").removeprefix(PREFIX)
        lines.append(f"| {one.cause} | `{one.command}` | {_plain(text)} | {one.status} |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """The text as Markdown shows it character for character; its `commands` stay code."""
    return re.sub(r"[|*\[\]\\]", r"\\\g<0>", text).replace("<", "&lt;")
