"""Family ``instruction``: instructions about given words, numbers and sentences, one right text each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .rows import GENERATION_SEED, Row, TaskRows, split_by_template

_POOL = 600

# What of a row is held out as a whole. Text ciphers and jumbles are left out: their answers are
# sentences of the same short book that the other generators quote.
_TEMPLATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "letter_counting": lambda item: item["metadata"]["target_letter"],
    "number_filtering": lambda item: (item["metadata"]["operation"], item["metadata"]["numbers"]),
    "number_sorting": lambda item: (item["metadata"]["direction"], item["metadata"]["numbers"]),
    "sentence_reordering": lambda item: item["answer"],
    "spell_backward": lambda item: item["metadata"]["word_len"],
    "word_sequence_reversal": lambda item: item["metadata"]["num_words"],
    "word_sorting": lambda item: (item["metadata"]["direction"], item["metadata"]["num_words"]),
}


def rows() -> TaskRows:
    """Count letters, filter, sort, reorder, spell backward: seven generators, a seventh of the rows each.

    Every generator is trained on, and the held-out rows ask it for something never trained on: a
    letter to count, an operation on a count of numbers, a length of word or of list, a sentence. So
    a held-out loss tells whether the adapter carries an instruction out, not whether it remembers
    the answers.
    """
    import reasoning_gym

    pools = []
    for number, (name, template) in enumerate(_TEMPLATES.items()):
        # Row i is drawn from seed + i: with one seed for all, the two about numbers would share theirs.
        seed = GENERATION_SEED + number * _POOL
        dataset = reasoning_gym.create_dataset(name, seed=seed, size=_POOL)
        items = [dataset[index] for index in range(_POOL)]
        pools.append([Row(f"{name}: {template(item)}", item["question"], item["answer"]) for item in items])
    return split_by_template(pools)
