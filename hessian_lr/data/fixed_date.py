"""Chat templates that write today's date are rendered on one day: the same rows stay the same data."""

from __future__ import annotations

import datetime
import re

_DAY = datetime.date(2026, 1, 1)
_CLOCK = re.compile(r"""\bstrftime_now\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)""")

NOTE = (
    f"this model's chat template writes today's date, which is held at {_DAY} here: with another "
    "one every day, nothing of yesterday would be found again"
)


def on_one_day(template: str) -> str:
    """The template with each date of its clock written out, as that day has it in the asked-for form."""
    return _CLOCK.sub(lambda asked: repr(_DAY.strftime(asked[1] or asked[2] or "")), template)
