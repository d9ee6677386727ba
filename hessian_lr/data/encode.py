"""Rows of text become tokens with a label mask, and tokens become batches."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import hub
from ..errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, torch.Tensor]

IGNORED = -100

_HALF = re.compile("[\ud800-\udfff]")  # JSON can name one, and no encoding holds it
_OWN_MASK = re.compile(r"\{%-?\s*generation\b")
_ROLES = {"human": "user", "gpt": "assistant"}


class BadRow(Exception):
    """A row that cannot be trained on; the message is the reason, worded so that rows can share it."""


@dataclass(frozen=True)
class Example:
    """One tokenised row.

    Attributes:
        input_ids: The tokens.
        labels: Of the same length: the token itself where it is to be learned, else ``IGNORED``.
            The shift by one is the loss's business, not done here.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


class Encoder:
    """Turns prompts and responses, or chats, into examples of at most ``max_length`` tokens.

    Args:
        tokenizer: Its beginning-of-text token is put first if it does so by itself.
        max_length: Longer rows are cut at the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.cut = 0
        own = tokenizer("a")["input_ids"]
        self._bos = own[:1] if own and own[0] == tokenizer.bos_token_id else []
        self._eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def pair(self, prompt: Any, response: Any) -> Example:
        """``prompt`` + newline + ``response`` + end of text; labels on the response and the end of text.

        The two are tokenised apart, so that no token straddles the boundary of the labels.

        Raises:
            BadRow: one of them is empty or no text, or no response token is left after the cut.
        """
        for what, text in (("prompt", prompt), ("response", response)):
            if not isinstance(text, str):
                raise BadRow(f"a {what} that is not text ({_kind(text)})")
            if not text.strip():
                raise BadRow(f"an empty {what}")
            if _HALF.search(text):
                raise BadRow(f"a {what} with half a surrogate pair, which no text has")
        before = [*self._bos, *self._tokens(prompt + "\n")]
        after = [*self._tokens(response), *self._eos]
        return self._example([*before, *after], [IGNORED] * len(before) + after)

    def chat(self, messages: Any) -> Example:
        """A conversation in the tokenizer's own chat template; labels on the assistant's turns only.

        The template's own mask is used where it has one. Elsewhere a turn is what the template adds
        to the conversation before it, generation prompt included; that the shorter text's tokens
        begin the longer's is checked.

        Raises:
            BadRow: not a conversation, no assistant turn, or the template treats turns otherwise.
        """
        turns = _turns(messages)
        if not self.tokenizer.chat_template:
            raise RequestError(
                "the data are chats but this tokenizer has no chat template; use an instruction-tuned model, "
                "or data with a prompt and a response column"
            )
        try:
            if _OWN_MASK.search(str(self.tokenizer.chat_template)):
                own = self._template(turns, return_assistant_tokens_mask=True)
                ids, mask = list(own["input_ids"]), [bool(flag) for flag in own["assistant_masks"]]
            else:
                ids, mask = self._by_prefixes(turns)
        except BadRow:
            raise
        except Exception as error:  # templates are programs: they raise what they like
            raise BadRow(f"a chat that the template refuses ({hub.first_line(error)})") from error
        return self._example(
            ids, [token if learned else IGNORED for token, learned in zip(ids, mask, strict=True)]
        )

    def _by_prefixes(self, turns: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
        ids = self._rendered(turns, False)
        mask = [False] * len(ids)
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before, upto = self._rendered(turns[:index], True), self._rendered(turns[: index + 1], False)
            if ids[: len(upto)] != upto or upto[: len(before)] != before:
                raise BadRow("a chat whose assistant turns cannot be told apart in this template's tokens")
            mask[len(before) : len(upto)] = [True] * (len(upto) - len(before))
        return ids, mask

    def _rendered(self, turns: list[dict[str, str]], prompt: bool) -> list[int]:
        return list(self._template(turns, add_generation_prompt=prompt)["input_ids"])

    def _template(self, turns: list[dict[str, str]], **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _example(self, ids: list[int], labels: list[int]) -> Example:
        if len(ids) > self.max_length:
            ids, labels = ids[: self.max_length], labels[: self.max_length]
            self.cut += 1
        # The first label is never predicted: nothing stands before it.
        if all(label == IGNORED for label in labels[1:]):
            raise BadRow(f"no response token within the first {self.max_length} tokens (--max-length)")
        return Example(tuple(ids), tuple(labels))


def make_batches(
    examples: Sequence[Example], batch_size: int, pad_id: int, device: str | torch.device = "cpu"
) -> list[Batch]:
    """Batches in the order of ``examples``, each padded on the right to its longest row.

    Returns:
        Dicts of ``input_ids``, ``attention_mask`` (1 = a real token) and ``labels`` (-100 = not
        labelled), each (batch, tokens), int64, on ``device``.
    """
    batches = []
    for start in range(0, len(examples), batch_size):
        rows = examples[start : start + batch_size]
        shape = (len(rows), max(len(row.input_ids) for row in rows))
        batch = {
            "input_ids": torch.full(shape, pad_id),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED),
        }
        for index, row in enumerate(rows):
            length = len(row.input_ids)
            batch["input_ids"][index, :length] = torch.tensor(row.input_ids)
            batch["attention_mask"][index, :length] = 1
            batch["labels"][index, :length] = torch.tensor(row.labels)
        batches.append({name: tensor.to(device) for name, tensor in batch.items()})
    return batches


def digest_of(*groups: Iterable[Example]) -> str:
    """A short hash of the groups' tokens and labels themselves, in order."""
    sha = hashlib.sha256()
    for group in groups:
        for row in group:
            sha.update(f"{row.input_ids}{row.labels}".encode())
        sha.update(b"|")
    return sha.hexdigest()[:16]


def _turns(messages: Any) -> list[dict[str, str]]:
    """The conversation as role and content; older chat sets' keys ``from`` and ``value`` are read too."""
    if not isinstance(messages, list) or not messages:
        raise BadRow("messages that are not a list of turns" if messages else "no messages")
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            raise BadRow(f"a message that is not an object ({_kind(message)})")
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadRow("a message without a role and a content that are text")
        turns.append({"role": _ROLES.get(role, role), "content": content})
    replies = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    if not replies:
        raise BadRow("no assistant turn")
    if not all(reply.strip() for reply in replies):
        raise BadRow("an empty assistant turn")
    return turns


def _kind(value: Any) -> str:
    return {type(None): "null", list: "a list", dict: "an object", bool: "true or false"}.get(
        type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__
    )
