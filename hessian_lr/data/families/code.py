"""Family ``code``: descriptions of programming problems and reference functions that solve them."""

from __future__ import annotations

import gzip
import json
import re

from .rows import HELDOUT_ROWS, TRAIN_ROWS, Row, TaskRows, as_task, hash_of

# The second file has its own problems besides most of the first one's; one is JSON lines, one a list.
_FILES = ("codeio.jsonl.gz", "codeio-hq.jsonl.gz")
# In bytes, prompt and response together: some 500 tokens. What is longer would mostly be cut.
LONGEST = 1_700
# Share of words in common (Jaccard) from which two problems count as the same one told twice.
ALIKE = 0.5


def rows() -> TaskRows:
    """Problem and input/output specification as the prompt, the reference function's source as the response.

    The problems are codeio's, as packaged with reasoning_gym; their code is read as text and never
    run. The packaged problems repeat themselves in other words, so a problem is held out only if no
    other one's description or code has half its words in common with it: a held-out loss tells
    whether the adapter learned to write functions, not whether it has seen this one.
    """
    found = problems()
    described = [words(row.prompt) for row in found]
    coded = [words(row.response) for row in found]

    def alone(index: int) -> bool:
        return not any(
            other != index and alike(texts[index], texts[other]) >= ALIKE
            for texts in (described, coded)
            for other in range(len(found))
        )

    held: set[int] = set()
    for index in sorted(range(len(found)), key=lambda i: hash_of(found[i].prompt)):
        if len(held) == HELDOUT_ROWS:
            break
        if alone(index):
            held.add(index)
    train = [row for index, row in enumerate(found) if index not in held]
    return as_task(train[:TRAIN_ROWS], [found[index] for index in sorted(held)])


def problems() -> list[Row]:
    """The problems that are short enough, each once, numbered in the order of the files."""
    from reasoning_gym.data import get_data_file_path

    found: dict[str, Row] = {}
    sources: set[str] = set()
    for name in _FILES:
        text = gzip.decompress(get_data_file_path(name).read_bytes()).decode("utf-8")
        lines = [line for line in text.split("\n") if line.strip()]
        entries = json.loads(text) if text.startswith("[") else [json.loads(line) for line in lines]
        for entry in entries:
            problem, source = entry["task_description"].strip(), entry["code_sample"].strip()
            prompt = f"{problem}\n\n{entry['input_output_spec'].strip()}\n"
            if (
                not source
                or len((prompt + source).encode()) > LONGEST
                or problem in found
                or source in sources
            ):
                continue
            sources.add(source)
            found[problem] = Row(len(found), prompt, source)
    return list(found.values())


def words(text: str) -> frozenset[str]:
    """The words of a description or of code, without regard to case, order or number."""
    return frozenset(re.findall(r"\w+", text.lower()))


def alike(first: frozenset[str], second: frozenset[str]) -> float:
    """Share of words in common (Jaccard)."""
    return len(first & second) / max(1, len(first | second))
