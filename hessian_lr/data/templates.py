"""What a tokenizer's chat template makes of a chat: its text and tokens, and where in them each turn is."""

from __future__ import annotations

import contextlib
import inspect
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from .bad_row import BadRow
from .chats import Chat
from .fixed_date import on_one_day

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWN_MASK = re.compile(r"\{%-?\s*generation\b")
# Put about a content to find it again: of Unicode's private use, so that no text has a meaning for them.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
# What ends a thought in a content.
_THOUGHT = "</think>"
# What every template writes, or says that it does not.
_USUAL_ROLES = ("user", "assistant")


class ChatTemplate:
    """A tokenizer's chat template, on one fixed day."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def labelled(self, chat: Chat) -> tuple[list[int], list[bool]]:
        """The chat's tokens, and which of them are to be learned.

        The template's own mask is used where it has one, less the turns that are not to be learned.
        Elsewhere a turn is what the template adds to the conversation before it, generation prompt
        included, or where it writes earlier turns otherwise than the last, the turn's content and what
        closes it.

        Raises:
            BadRow: the turns cannot be found, or the template's mask has none of them.
        """
        if not _OWN_MASK.search(self._chosen(chat)):
            ids = self._tokens(chat)
            mask = [False] * len(ids)
            self._mark(chat, ids, mask, learned=True)
            return ids, mask
        own = self._apply(chat, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = list(own["input_ids"]), [bool(flag) for flag in own["assistant_masks"]]
        if not any(mask):
            raise BadRow("a chat of which the template's own mask marks nothing")
        self._mark(chat, ids, mask, learned=False)
        return ids, mask

    def unspoken(self, chat: Chat) -> list[str]:
        """What the chat has and the template leaves out: the text is the same without it.

        Raises:
            BadRow: an assistant's turn is empty, or all that it has is left out.
        """
        names, unspoken = chat.names(), []
        text = self._text(chat) if names else ""
        for name in names:
            with contextlib.suppress(Exception):  # a template that refuses the rest does look at it
                if self._text(chat.without(name)) == text:
                    unspoken.append(name)
        said = {"content", *names} - {*unspoken, "tools"}
        for turn in chat.turns:
            if turn["role"] == "assistant" and not any(str(turn.get(name, "")).strip() for name in said):
                raise BadRow("an empty assistant turn")
        for role in dict.fromkeys(turn["role"] for turn in chat.turns):
            if role not in _USUAL_ROLES and not self._speaks(chat, role):
                unspoken.append(f"turns of the role {role}")
        return unspoken

    def dated(self, chat: Chat) -> bool:
        """Whether it writes today's date into the chat."""
        template = self.tokenizer.get_chat_template(tools=cast(Any, chat.tools))
        if on_one_day(template) == template:
            return False
        return bool(self._text(chat) != self._apply(chat, tokenize=False, chat_template=template))

    def _speaks(self, chat: Chat, role: str) -> bool:
        marked = [
            turn | {"content": _OPEN} if turn["role"] == role and turn["content"].strip() else turn
            for turn in chat.turns
        ]
        if marked == chat.turns:
            return True
        with contextlib.suppress(Exception):  # a template that refuses what stands there does look at it
            return _OPEN in self._text(replace(chat, turns=marked))
        return True

    def _mark(self, chat: Chat, ids: list[int], mask: list[bool], *, learned: bool) -> None:
        """Say in ``mask`` which of ``ids`` belong to the turns that are, or are not, to be learned."""
        for index in chat.replies(learned=learned):
            start, end = self._added(chat, index, ids) or self._about(chat, index, ids)
            mask[start:end] = [learned] * (end - start)

    def _added(self, chat: Chat, index: int, ids: list[int]) -> tuple[int, int] | None:
        """Where in ``ids`` the turn is, if they begin with the conversation before it, and up to it."""
        if index == 0:  # before which there is none
            return None
        before, upto = self._tokens(chat, index, prompt=True), self._tokens(chat, index + 1)
        if ids[: len(upto)] != upto or upto[: len(before)] != before:
            return None
        return len(before), len(upto)

    def _about(self, chat: Chat, index: int, ids: list[int]) -> tuple[int, int]:
        """Where in ``ids`` the turn's content is with what closes it, found by what is put about it."""
        apart = BadRow("a chat whose assistant turns cannot be told apart in this template's tokens")
        text, (start, end) = self._text(chat), self._content(chat, index)
        whole, (_, last) = self._text(chat.begun(index + 1)), self._content(chat.begun(index + 1), index)
        closing = whole[last:]
        if start < 0 or last < 0 or not text.startswith(closing, end) or not self.tokenizer.is_fast:
            raise apart
        told = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if list(told["input_ids"]) != ids:
            raise apart
        inside = [
            place
            for place, (begins, _) in enumerate(told["offset_mapping"])
            if start <= begins < end + len(closing)
        ]
        if not inside:
            raise apart
        return inside[0], inside[-1] + 1

    def _content(self, chat: Chat, index: int) -> tuple[int, int]:
        """From where to where in the chat's text a turn's content stands; −1 where it cannot be told."""
        content, text = chat.turns[index]["content"], self._text(chat)
        # Some templates leave out what an earlier turn's content thinks aloud.
        for part in (content, content.rpartition(_THOUGHT)[2]):
            bare, before = part.strip(), content[: len(content) - len(part)]
            # Inside what surrounds it: templates strip.
            marked = before + (part.replace(bare, _OPEN + bare + _CLOSE, 1) if bare else _OPEN + _CLOSE)
            turns = [*chat.turns]
            turns[index] = turns[index] | {"content": marked}
            told = self._text(replace(chat, turns=turns))
            start, end = told.find(_OPEN), told.find(_CLOSE) - 1
            if told.replace(_OPEN, "").replace(_CLOSE, "") == text and 0 <= start <= end:
                return start, end
        return -1, -1

    def _tokens(self, chat: Chat, turns: int | None = None, *, prompt: bool = False) -> list[int]:
        part = chat if turns is None else chat.begun(turns)
        return list(self._apply(part, return_dict=True, add_generation_prompt=prompt)["input_ids"])

    def _text(self, chat: Chat) -> str:
        return str(self._apply(chat, tokenize=False))

    def _chosen(self, chat: Chat) -> str:
        """The one of the tokenizer's templates that serves the chat, its clock held."""
        return on_one_day(self.tokenizer.get_chat_template(tools=cast(Any, chat.tools)))

    def _apply(self, chat: Chat, **options: Any) -> Any:
        # A row may switch the template, not the tokenizer.
        if own := chat.switches.keys() & inspect.signature(self.tokenizer.apply_chat_template).parameters:
            raise BadRow(f"chat_template_kwargs that are not for the template ({', '.join(sorted(own))})")
        options.setdefault("chat_template", self._chosen(chat))
        tools = cast(Any, chat.tools)
        return self.tokenizer.apply_chat_template(chat.turns, tools=tools, **options, **chat.switches)
