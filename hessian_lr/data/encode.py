"""Rows of text become tokens with a label mask, and tokens become batches."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import hub
from ..batches import IGNORED, Batch
from ..errors import RequestError
from ..records import is_number
from .bad_row import BadRow, kind
from .chats import conversation
from .templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF = re.compile("[\ud800-\udfff]")  # JSON can name one, and no encoding holds it


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
        tokenizer: What it begins a text with by itself is put first.
        max_length: Longer rows are cut at the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.max_length = max_length
        self.cut = 0
        # Whether a chat's template would have written today's date.
        self.dated = False
        # How many chats had what the template leaves out, by its name.
        self.unspoken: Counter[str] = Counter()
        # How many chats had assistant's turns that are not to be learned.
        self.unlearned = 0
        own, bare = list(tokenizer("a")["input_ids"]), self._tokens("a")
        # Not every tokenizer calls a bos_token what it puts first.
        starts = (at for at in range(len(own)) if own[at : at + len(bare)] == bare)
        self._begin = own[: next(starts, 0)]
        self._eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def pair(self, prompt: Any, response: Any, beside: Mapping[str, Any] | None = None) -> Example:
        """``prompt`` + newline + ``response`` + end of text; labels on the response and the end of text.

        The two are tokenised apart, so that no token straddles the boundary of the labels. Where both are
        lists of messages they are one chat, of which the assistant's turns in the response are labelled.

        Raises:
            BadRow: one of them is empty or no text, or no response token is left after the cut.
        """
        if isinstance(prompt, list) and isinstance(response, list):
            return self.chat(response, beside, prompt)
        prompt, response = _text("prompt", prompt), _text("response", response)
        before = [*self._begin, *self._tokens(prompt + "\n")]
        after = self._tokens(response)
        if after[-1:] != self._eos:  # some files end their responses with it
            after = [*after, *self._eos]
        return self._example([*before, *after], [IGNORED] * len(before) + after)

    def chat(
        self, messages: Any, beside: Mapping[str, Any] | None = None, prompt: Sequence[Any] = ()
    ) -> Example:
        """A conversation in the tokenizer's own chat template; labels on the assistant's turns only.

        And of these not on turns of weight 0.

        Args:
            messages: The turns.
            beside, prompt: See ``chats.conversation``.

        Raises:
            BadRow: not a conversation, no assistant turn or an empty one, or the template treats turns
                otherwise.
        """
        chat = conversation(messages, beside or {}, prompt)
        if not self.tokenizer.chat_template:
            raise RequestError(
                "the data are chats but this tokenizer has no chat template; use an instruction-tuned model, "
                "or data with a prompt and a response column"
            )
        try:
            unspoken, dated = self.template.unspoken(chat), self.template.dated(chat)
            ids, mask = self.template.labelled(chat)
        except BadRow:
            raise
        except Exception as error:  # templates are programs: they raise what they like
            raise BadRow(f"a chat that the template refuses ({hub.first_line(error)})") from error
        example = self._example(
            ids, [token if learned else IGNORED for token, learned in zip(ids, mask, strict=True)]
        )
        self.unspoken.update(unspoken)
        self.dated |= dated
        self.unlearned += chat.muted()
        return example

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _example(self, ids: list[int], labels: list[int]) -> Example:
        longer = len(ids) > self.max_length
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        # The first label is never predicted: nothing stands before it.
        if all(label == IGNORED for label in labels[1:]):
            raise BadRow(f"no response token within the first {self.max_length} tokens (--max-length)")
        self.cut += longer  # a row that is left out counts as that alone
        return Example(tuple(ids), tuple(labels))


def _text(what: str, value: Any) -> str:
    """A prompt or a response as text; a number is written as Python writes it."""
    if is_number(value):
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"a {what} that is not text ({kind(value)})")
    if not value.strip():
        raise BadRow(f"an empty {what}")
    if _HALF.search(value):
        raise BadRow(f"a {what} with half a surrogate pair, which no text has")
    return value


def make_batches(
    examples: Sequence[Example], batch_size: int, pad_id: int, device: str | torch.device = "cpu"
) -> list[Batch]:
    """Batches in the order of ``examples``, each padded on the right to its longest row.

    Returns:
        Dicts of ``input_ids``, ``attention_mask`` (1 = a real token) and ``labels`` (-100 = not
        labelled), each (batch, tokens), int64, on ``device``.
    """
    batches: list[Batch] = []
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
