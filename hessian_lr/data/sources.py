"""Rows from local files and hub datasets, and which of their columns to use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import hub
from ..errors import HessianLRError, RequestError, hint, unknown_name
from .files import SUFFIXES, Row, read_file
from .tasks import TASKS

if TYPE_CHECKING:
    import datasets

# Owner and name, and where a dataset has several configurations, which.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
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

    To chat messages belong the columns of ``_BESIDE_CHATS``, where there are any. A prompt and a response
    may be lists of such messages.
    ``alpaca`` puts the prompt column's instruction, and the text of a column ``input`` where there is
    any, into the prompt that instruction data are trained with.
    """

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    alpaca: bool = False

    def content(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """The row's messages and what belongs to them, or its prompt and response, of whatever type."""
        beside = {name: row[name] for name in _BESIDE_CHATS if row.get(name)}
        if self.messages is not None:
            return (row.get(self.messages), beside) if beside else (row.get(self.messages),)
        prompt, context = row.get(self.prompt or ""), row.get("input")
        # An instruction that is empty or no text stays what it is, for the encoder to refuse.
        if self.alpaca and isinstance(prompt, str) and prompt.strip():
            has_input = isinstance(context, str) and context.strip()
            prompt = (_ALPACA_INPUT if has_input else _ALPACA).format(instruction=prompt, input=context)
        response = row.get(self.response or "")
        if beside and isinstance(prompt, list) and isinstance(response, list):
            return prompt, response, beside
        return prompt, response

    def __str__(self) -> str:
        return f"column {self.messages}" if self.messages else f"columns {self.prompt} and {self.response}"


def is_hub_id(name: str) -> bool:
    """Whether ``name`` is looked for on the hub: it has an id's form and is no local file or folder."""
    path = Path(name).expanduser()
    return not path.exists() and path.suffix.lower() not in SUFFIXES and bool(_HUB_ID.fullmatch(name))


def read(name: str, most: int, fields: tuple[str, ...] | None = None) -> tuple[list[Row], int]:
    """The rows of a local file, of a folder's train split, or of a hub dataset's.

    Args:
        name: The file, the folder that `save_to_disk` wrote or that holds files, or the dataset's id;
            ``id:name`` is its configuration of that name.
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
        return _thinned(_folder(path), most)
    if path.is_file() or path.suffix.lower() in SUFFIXES:
        usual = {column for pair in _PAIRS for column in pair} | {*_CHATS, "input"}
        rows = read_file(path, {*(usual if fields is None else fields), *_BESIDE_CHATS})
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
                meant = hint(field, map(str, found))
                raise RequestError(f"{where} has no column {field!r}.{meant} Columns found: {listed}")
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
            source, _, configuration = name.partition(":")
            rows = datasets.load_dataset(source, configuration or None, split="train")
    except Exception as error:
        if not online:
            raise HessianLRError(
                f"{name} is no local file, not in the cache of hub datasets, and the hub cannot be reached; "
                f"connect, give a local file ({', '.join(SUFFIXES)}), or use a built-in task "
                f"({', '.join(TASKS)})"
            ) from error
        raise RequestError(
            f"cannot load the train split of the hub dataset {name}: {hub.first_line(error)}; check the id "
            "(owner/name, or owner/name:configuration) and that it has a train split; for a private or gated "
            "one, log in with `hf auth login` (or set HF_TOKEN); or save the rows you want as a local .jsonl "
            "file"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()
    return _thinned(rows, most)


def _folder(path: Path) -> datasets.Dataset:
    """The dataset that ``save_to_disk`` wrote into a folder, or that is its files, or the train split of it.

    Which files are the train split their names say, as on the hub; without any such name, all are.
    """
    import datasets

    saved = any((path / name).exists() for name in ("dataset_dict.json", "state.json"))
    holds = any(file.suffix.lower() in SUFFIXES for place in ("*", "*/*") for file in path.glob(place))
    try:
        # The JSON files of a model's or an adapter's folder are no data.
        if not saved and (not holds or any(path.glob("*config.json"))):
            raise FileNotFoundError("it holds no data files")
        with hub.silenced():
            if not saved:
                return datasets.load_dataset(str(path), split="train")
            found = datasets.load_from_disk(path)
            return found["train"] if isinstance(found, datasets.DatasetDict) else found
    except Exception as error:
        raise RequestError(
            f"{path} is a folder, and no dataset with a train split can be read from it "
            f"({hub.first_line(error)}); give one that `save_to_disk` wrote or that holds data files, one "
            f"file ({', '.join(SUFFIXES)}), or a hub dataset id"
        ) from error


def _thinned(rows: datasets.Dataset, most: int) -> tuple[list[Row], int]:
    chosen = range(0, len(rows), _step(len(rows), most))
    return [(index + 1, dict(row)) for index, row in zip(chosen, rows.select(chosen), strict=True)], len(rows)
