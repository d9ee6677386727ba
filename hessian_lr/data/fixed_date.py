"""Chat templates that write today's date are rendered on one day: the same rows stay the same data."""

from __future__ import annotations

import contextlib
import datetime
import functools
import re
from string import ascii_letters

_DAY = datetime.date(2026, 1, 1)
_CLOCK = re.compile(r"\bstrftime_now\b")
# What may stand between a directive's % and its letter: C's modifiers, and how some systems pad and write.
_BETWEEN = ("", "-", "_", "0", "^", "#", "E", "O")

NOTE = (
    f"this model's chat template writes today's date, which is held at {_DAY} here: with another "
    "one every day, nothing of yesterday would be found again"
)


def on_one_day(template: str) -> str:
    """The template with its clock, if it has one, held at that day, whatever form it asks for."""
    return _held_clock() + template if _CLOCK.search(template) else template


@functools.cache
def _held_clock() -> str:
    """A macro in the place of ``strftime_now``, which by itself writes nothing.

    A function cannot be handed in its place: transformers makes text of all that is not plain data. The
    line's end belongs to the block before it, so that the template's own first line stays one.
    """
    return (
        "{%- macro strftime_now(format) -%}"
        f"{{%- set day = {_directives()!r} -%}}"
        "{%- for text in format.split('%%') -%}{{- '' if loop.first else '%' -}}"
        "{%- for part in text.split('%') -%}"
        "{%- if loop.first -%}{{- part -}}"
        "{%- elif part[:2] in day -%}{{- day[part[:2]] ~ part[2:] -}}"
        "{%- elif part[:1] in day -%}{{- day[part[:1]] ~ part[1:] -}}"
        "{%- else -%}{{- '%' ~ part -}}{%- endif -%}"
        "{%- endfor -%}{%- endfor -%}{%- endmacro %}\n"
    )


def _directives() -> dict[str, str]:
    """What each of ``strftime``'s directives, less its %, is on that day, where this system knows it."""
    found = {}
    for directive in (between + letter for between in _BETWEEN for letter in ascii_letters):
        with contextlib.suppress(ValueError):  # as Windows says of those that it does not know
            if "%" not in (said := _DAY.strftime(f"%{directive}")):
                found[directive] = said
    return found
