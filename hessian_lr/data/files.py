"""Rows of local files: JSON, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import RequestError
from .bad_row import BadRow

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")

# A row is its number as a reader would count it (line or row, from 1) and its values, or why it has none.
Row = tuple[int, dict[str, Any] | BadRow]


def read_file(path: Path, used: Collection[str]) -> list[Row]:
    """The rows of a file.

    Args:
        path: The file.
        used: Columns that may be needed; others of a Parquet file are null.

    Raises:
        RequestError: there is no such file, or it is not what its name says.
    """
    if not path.is_file():
        raise RequestError(f"there is no file {path}; check the path")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RequestError(f"cannot read {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            return _read_parquet(path, used)
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    if suffix == ".csv":
        return _read_csv(path, content)
    return list(_lines(content)) if suffix == ".jsonl" else _read_json(path, content)


def _read_json(path: Path, content: bytes) -> list[Row]:
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        # Many a file of JSON lines is called .json: it is one if its lines say so.
        lines = list(_lines(content))
        if sum(isinstance(row, dict) for _, row in lines) > len(lines) / 2:
            return lines
        raise RequestError(f"{path} is not valid JSON ({error}); correct it, or copy it again") from error
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise RequestError(
            f'{path} must hold a list of objects, or {{"data": [...]}}; one object a line is .jsonl'
        )
    return [(number, _object(item)) for number, item in enumerate(value, 1)]


def _lines(content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, _object(json.loads(line.decode("utf-8")))
        except UnicodeDecodeError:
            yield number, BadRow("text that is not UTF-8")
        except (ValueError, RecursionError):
            yield number, BadRow("invalid JSON")


def _object(value: Any) -> dict[str, Any] | BadRow:
    return value if isinstance(value, dict) else BadRow("something that is not an object")


def _read_csv(path: Path, content: bytes) -> list[Row]:
    """Rows by the names in the first line; all values are text."""
    # The library's own limit would cost the file for one long value; none is longer than the file.
    limit = csv.field_size_limit(len(content) + 1)
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        names = next(lines, [])
        rows = [(lines.line_num, cells) for cells in lines if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} is not a readable CSV file in UTF-8: {error}") from error
    finally:
        csv.field_size_limit(limit)
    if len(set(names)) < len(names):
        raise RequestError(f"{path}: two columns have one name in its first line ({', '.join(names)})")
    unlike = BadRow(f"another number of values than the {len(names)} columns of the first line")
    return [
        (number, dict(zip(names, cells, strict=True)) if len(cells) == len(names) else unlike)
        for number, cells in rows
    ]


def _read_parquet(path: Path, used: Collection[str]) -> list[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(path)
        names = table.column_names
        # Images take much memory as objects, and not every date that Arrow can hold is one in Python.
        rows = table.select([at for at, name in enumerate(names) if name in used]).to_pylist()
    # Texts, dates and names of columns are decoded only as rows are made.
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError) as error:
        size = path.stat().st_size
        raise RequestError(
            f"{path} ({size:,} bytes) is not a readable Parquet file: {hub.first_line(error)}; copy or write "
            "it again"
        ) from error
    null = dict.fromkeys(names)
    return [(number, null | row) for number, row in enumerate(rows, 1)]
