"""Rows from local files and hub datasets, and which of their columns to use."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import HessianLRError, RequestError, unknown_name
from .bad_row import BadRow
from .tasks import TASKS

SUFFIXES = (".json", ".jsonl", ".parquet")

# A row is its number as a reader would count it (line or row, from 1) and its values, or why it has none.
Row = tuple[int, dict[str, Any] | BadRow]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("query", "answer"),
)
_CHATS = ("messages", "conversations")
_BESIDE_CHATS = ("system", "tools", "chat_template_kwargs")
# The prompt of the instruction data sets (Taori et al., 2023, Stanford Alpaca), as their users train on it.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:"
)


@dataclass(frozen=True)
class Columns:
    """Where a row's text is: a prompt and a response column, or one of chat messages.

    To chat messages belong the columns of ``_BESIDE_CHATS``, where there are any.
    ``alpaca`` puts the prompt column's instruction, and the text of a column ``input`` where there is
    any, into the prompt that instruction data are trained with.
    """

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    alpaca: bool = False

    def content(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """The row's messages and what belongs to them, or its prompt and response, of whatever type."""
        if self.messages is not None:
            beside = {name: row[name] for name in _BESIDE_CHATS if row.get(name)}
            return (row.get(self.messages), beside) if beside else (row.get(self.messages),)
        prompt, context = row.get(self.prompt or ""), row.get("input")
        # An instruction that is empty or no text stays what it is, for the encoder to refuse.
        if self.alpaca and isinstance(prompt, str) and prompt.strip():
            has_input = isinstance(context, str) and context.strip()
            prompt = (_ALPACA_INPUT if has_input else _ALPACA).format(instruction=prompt, input=context)
        return prompt, row.get(self.response or "")

    def __str__(self) -> str:
        return f"column {self.messages}" if self.messages else f"columns {self.prompt} and {self.response}"


def is_hub_id(name: str) -> bool:
    """Whether ``name`` is looked for on the hub: it has an id's form and is no local file or folder."""
    path = Path(name).expanduser()
    return not path.exists() and path.suffix.lower() not in SUFFIXES and bool(_HUB_ID.fullmatch(name))


def read(name: str, most: int, fields: tuple[str, ...] | None = None) -> tuple[list[Row], int]:
    """The rows of a local file, or of a hub dataset's train split.

    Args:
        name: The file or the dataset's id.
        most: Of more rows than this, every second (third, …) is taken, so that at most this many are.
        fields: See ``find_columns``. Other columns of a Parquet file are null.

    Returns:
        The rows, and how many there were.

    Raises:
        RequestError: there is no such file or dataset, or the file is not what its name says.
        HessianLRError: the hub cannot be reached.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise RequestError(f"{name} is a folder; give one file ({', '.join(SUFFIXES)}) or a hub dataset id")
    if path.is_file() or path.suffix.lower() in SUFFIXES:
        rows = _read_file(path, fields)
        return rows[:: _step(len(rows), most)], len(rows)
    if is_hub_id(name):
        return _read_hub(name, most)
    if "/" in name or path.suffix:
        raise RequestError(f"there is no file {name}; check the path (read are {', '.join(SUFFIXES)})")
    raise unknown_name("task", name, TASKS)


def find_columns(rows: Sequence[Row], fields: tuple[str, ...] | None, where: str) -> Columns:
    """The columns that ``fields`` name, or else the usual names that the rows have.

    Found by their names, ``instruction`` and ``output`` are in Alpaca's prompt; named, they are as they are.

    Raises:
        RequestError: a named column is absent, or no usual name is there.
    """
    found = list(dict.fromkeys(key for _, row in rows if isinstance(row, dict) for key in row))
    listed = ", ".join(map(str, found[:20])) or "none"
    if fields is not None:
        for field in fields:
            if field not in found:
                near = difflib.get_close_matches(field, [str(key) for key in found], n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise RequestError(f"{where} has no column {field!r}.{hint} Columns found: {listed}")
        return Columns(messages=fields[0]) if len(fields) == 1 else Columns(fields[0], fields[1])
    for prompt, response in _PAIRS:
        if prompt in found and response in found:
            return Columns(prompt, response, alpaca=prompt == "instruction")
    for chat in _CHATS:
        if chat in found:
            return Columns(messages=chat)
    looked = ", ".join(f"{prompt}+{response}" for prompt, response in _PAIRS)
    raise RequestError(
        f"{where}: cannot tell which columns to use. Columns found: {listed}. Looked for {looked}, "
        f"{', '.join(_CHATS)}. Name them with --fields PROMPT,RESPONSE (or one column of chat messages)"
    )


def _read_file(path: Path, fields: tuple[str, ...] | None) -> list[Row]:
    if not path.is_file():
        raise RequestError(f"there is no file {path}; check the path")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RequestError(f"cannot read {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            return _read_parquet(path, fields)
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
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


def _read_parquet(path: Path, fields: tuple[str, ...] | None) -> list[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    usual = {name for pair in _PAIRS for name in pair} | {*_CHATS, "input"}
    used = {*(usual if fields is None else fields), *_BESIDE_CHATS}
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


def _step(total: int, most: int) -> int:
    return max(1, -(-total // most))


def _read_hub(name: str, most: int) -> tuple[list[Row], int]:
    import datasets

    online = hub.reachable()
    bars, offline = datasets.is_progress_bar_enabled(), datasets.config.HF_HUB_OFFLINE
    try:
        # Told that it is offline, the library reads its cache at once instead of retrying for long.
        datasets.config.HF_HUB_OFFLINE = not online
        datasets.disable_progress_bars()
        with hub.silenced():
            rows = datasets.load_dataset(name, split="train")
    except Exception as error:
        if not online:
            raise HessianLRError(
                f"{name} is no local file, not in the cache of hub datasets, and the hub cannot be reached; "
                f"connect, give a local file ({', '.join(SUFFIXES)}), or use a built-in task "
                f"({', '.join(TASKS)})"
            ) from error
        raise RequestError(
            f"cannot load the train split of the hub dataset {name}: {hub.first_line(error)}; check the id "
            "(owner/name) and that it has a train split; for a private or gated one, log in with `hf auth "
            "login` (or set HF_TOKEN); or save the rows you want as a local .jsonl file"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()
    chosen = range(0, len(rows), _step(len(rows), most))
    return [(index + 1, dict(row)) for index, row in zip(chosen, rows.select(chosen), strict=True)], len(rows)
