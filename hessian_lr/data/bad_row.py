"""A row of data that cannot be trained on."""

from __future__ import annotations

from typing import Any


class BadRow(Exception):
    """A row that cannot be trained on; the message is the reason, worded so that rows can share it."""


def kind(value: Any) -> str:
    """What a JSON value is, in a reader's words."""
    return {type(None): "null", list: "a list", dict: "an object", bool: "true or false"}.get(
        type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__
    )
