"""The text the bench's small models are pretrained on: what is installed anyway, so without a network.

Half of it is English prose and code (docstrings and sources of installed Python packages), half are
questions and answers of reasoning_gym's generators. The generators that the built-in tasks are made
from are left out: fine-tuning must have something to learn.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    *("numpy", "scipy", "matplotlib", "sympy"),
    *("torch", "transformers", "peft", "datasets", "accelerate"),
)
# Those of hessian_lr's built-in tasks, and what is made from the same short book as one of them.
FINE_TUNED_ON = frozenset(
    (
        *("gsm_symbolic", "codeio", "family_relationships", "syllogism", "knights_knaves"),
        *("letter_counting", "number_filtering", "number_sorting", "sentence_reordering", "spell_backward"),
        *("word_sequence_reversal", "word_sorting", "letter_jumble", "caesar_cipher", "word_ladder"),
    )
)
GENERATORS = (
    *("aiw", "base_conversion", "basic_arithmetic", "calendar_arithmetic", "chain_sum", "count_bits"),
    *(
        "count_primes",
        "countdown",
        "decimal_arithmetic",
        "decimal_chain_sum",
        "dice",
        "fraction_simplification",
    ),
    *(
        "fraction_simplification",
        "gcd",
        "isomorphic_strings",
        "lcm",
        "leg_counting",
        "list_functions",
        "needle_haystack",
    ),
    *("number_sequence", "palindrome_generation", "prime_factorization", "products", "propositional_logic"),
    *("ransom_note", "simple_equations", "simple_geometry", "string_insertion", "time_intervals"),
)
ROWS_EACH = 2_500
SEED = 7
LONGEST = 4_000  # characters of one piece: what is longer is one subject for too long


def pieces() -> list[str]:
    """All pieces of text, in an order that mixes them, the same on every machine with these packages."""
    found = [*_prose(), *_questions()]
    return sorted(set(found), key=lambda text: hashlib.sha256(text.encode()).digest())


def _questions() -> Iterator[str]:
    import reasoning_gym

    assert not FINE_TUNED_ON & set(GENERATORS)
    for name in GENERATORS:
        dataset = reasoning_gym.create_dataset(name, seed=SEED, size=ROWS_EACH)
        for index in range(ROWS_EACH):
            item = dataset[index]
            text = f"{item['question']}\n{item['answer']}"
            if len(text) <= LONGEST:
                yield text


def _prose() -> Iterator[str]:
    """Docstrings of all packages, and the standard library's sources in pieces."""
    library = Path(sysconfig.get_paths()["purelib"])
    for package in PACKAGES:
        for file in sorted((library / package).rglob("*.py")):
            yield from _docstrings(_read(file))
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = _read(file)
        yield from _docstrings(source)
        yield from (source[i : i + LONGEST] for i in range(0, len(source), LONGEST))


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="ignore")


def _docstrings(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) >= 80:
                yield text[:LONGEST]


if __name__ == "__main__":
    everything = pieces()
    sys.stdout.write(f"{len(everything):,} pieces, {sum(map(len, everything)):,} characters\n")
