"""A chat as a row has it becomes what a chat template takes: turns with all they hold, and the tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .bad_row import BadRow, kind

# What a turn may say beside its content, by the names that templates read.
SPOKEN = ("tool_calls", "reasoning_content", "reasoning", "thinking")
# Keys by which a turn of the assistant's is learned, 1 or true, or is not, 0 or false.
LEARNED = ("weight", "train")
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Chat:
    """One conversation.

    Attributes:
        turns: A role and a content each, and every other key that the row's message has.
        tools: What may be called, as JSON schemas; None: nothing.
        switches: What the template is told beside these, such as whether to think.
        given: How many turns at the beginning are a prompt, of which nothing is learned.
    """

    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    switches: dict[str, Any] = field(default_factory=dict)
    given: int = 0

    def names(self) -> list[str]:
        """Which of ``tools`` and ``SPOKEN`` it has."""
        spoken = [name for name in SPOKEN if any(turn.get(name) for turn in self.turns)]
        return ["tools", *spoken] if self.tools else spoken

    def replies(self, *, learned: bool) -> list[int]:
        """The places of the assistant's turns that are to be learned, or of those that are not."""
        return [
            place
            for place, turn in enumerate(self.turns)
            if turn["role"] == "assistant" and (place >= self.given and not _muted(turn)) == learned
        ]

    def muted(self) -> bool:
        """Whether it has assistant's turns beyond the prompt that say they are not to be learned."""
        return any(turn["role"] == "assistant" and _muted(turn) for turn in self.turns[self.given :])

    def without(self, name: str) -> Chat:
        """The same conversation without one of ``names``."""
        turns = [{key: value for key, value in turn.items() if key != name} for turn in self.turns]
        return replace(self, turns=turns, tools=None if name == "tools" else self.tools)

    def begun(self, turns: int) -> Chat:
        """The same conversation after some turns."""
        return replace(self, turns=self.turns[:turns])


def conversation(messages: Any, beside: Mapping[str, Any], prompt: Sequence[Any] = ()) -> Chat:
    """The conversation of a row.

    Nulls are left out: Parquet fills in every key that some row has. Older chat sets' keys ``from`` and
    ``value`` are read too.

    Args:
        messages: The turns.
        beside: The row's columns ``system``, which becomes the first turn, ``tools``, as a list or as
            JSON text, and ``chat_template_kwargs``, as far as it has them.
        prompt: Turns before these, of which nothing is learned.

    Raises:
        BadRow: it is no conversation, or has no assistant turn to learn.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRow("messages that are not a list of turns" if messages else "no messages")
    turns = [_turn(message) for message in [*prompt, *messages]]
    given = len(prompt)
    if (system := beside.get("system")) is not None:
        given -= len(turns)
        turns = _with_system(system, turns)
        given += len(turns)
    switches = beside.get("chat_template_kwargs", {})
    if not isinstance(switches, dict):
        raise BadRow(f"chat_template_kwargs that are not an object ({kind(switches)})")
    chat = Chat(turns, _tools(beside.get("tools")), _without_nulls(switches), given)
    if not chat.replies(learned=True):
        raise BadRow(f"no assistant turn{' of weight 1' if chat.muted() else ''}")
    return chat


def _turn(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRow(f"a message that is not an object ({kind(message)})")
    turn = _without_nulls(message)
    role, content = turn.pop("role", turn.pop("from", None)), turn.pop("content", turn.pop("value", None))
    if content is None and any(turn.get(name) for name in SPOKEN):
        content = ""  # as a turn has that does nothing but call a tool
    if isinstance(content, list):
        content = "".join(map(_text_of, content))
    if not isinstance(role, str) or not isinstance(content, str):
        raise BadRow("a message without a role and a content that are text")
    for key in LEARNED:
        if turn.get(key, 1) not in (0, 1):
            raise BadRow(f"a message whose {key} is neither 0 nor 1")
    return {"role": _ROLES.get(role, role), "content": content, **turn}


def _text_of(part: Any) -> str:
    """The text of one of the parts that a content may be a list of, as in OpenAI's messages."""
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    what = part.get("type", "an object") if isinstance(part, dict) else kind(part)
    raise BadRow(f"a message with a part of its content that is not text ({what})")


def _muted(turn: Mapping[str, Any]) -> bool:
    return not all(turn.get(key, 1) for key in LEARNED)


def _with_system(system: Any, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not isinstance(system, str):
        raise BadRow(f"a system column that is not text ({kind(system)})")
    first = {"role": "system", "content": system}
    if not system.strip() or turns[0] == first:
        return turns
    if turns[0]["role"] == "system":
        raise BadRow("a system column beside a system turn that says something else")
    return [first, *turns]


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "null")
        except (ValueError, RecursionError):
            raise BadRow("tools that are neither a list nor JSON") from None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow("tools that are not a list of objects")
    return _without_nulls(tools) if tools else None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
