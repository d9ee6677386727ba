"""Family ``commonsense``: short questions of synthetic logic; no knowledge of the world is asked for."""

from __future__ import annotations

import re
from functools import cache
from itertools import chain, combinations, product
from typing import Any

from .rows import GENERATION_SEED, Row, TaskRows, split_by_template

_POOL = 1_500
# The generator's nieces, nephews and in-laws are left out: it answers for the other person.
_FEMALE = ("mother", "sister", "daughter", "wife", "grandmother", "aunt")
_MALE = ("father", "brother", "son", "husband", "grandfather", "uncle")
RELATIONS = frozenset((*_FEMALE, *_MALE))
_STATEMENT = re.compile(r"(All|No|Some) (\w+) are (not )?(\w+)")
_Statement = tuple[str, str, str]


def rows() -> TaskRows:
    """Family relations, syllogisms, and islanders who always lie or never do, a third each.

    Rows that the generators answer wrongly are left out: some family relations (``RELATIONS``), and
    syllogisms that do not follow though they are said to (a middle term that neither premise covers).

    The held-out rows come from templates that no training row comes from: a relation asked about in
    one of three wordings (the relation itself is trained in the others), a syllogism's form, and a
    pattern of islanders' statements. So the answers' words are all trained on, and what is held out
    is a way of asking or of reasoning. Names and terms are drawn afresh for each row.
    """
    import reasoning_gym

    pools = []
    # Up to twelve relatives, so that there are aunts and uncles.
    for name, options in (
        ("family_relationships", {"max_family_size": 12}),
        ("syllogism", {}),
        ("knights_knaves", {}),
    ):
        dataset = reasoning_gym.create_dataset(name, seed=GENERATION_SEED, size=_POOL, **options)
        pool = []
        for index in range(_POOL):
            item = dataset[index]
            key = _TEMPLATES[name](item)
            if key is not None:
                pool.append(Row(f"{name}: {key}", item["question"], item["answer"]))
        pools.append(pool)
    return split_by_template(pools)


def _relation(item: dict[str, Any]) -> str | None:
    """The relation and the wording of the question, its names left out."""
    if item["answer"] not in RELATIONS:
        return None
    asked = item["question"].rsplit("\n", 1)[1]
    people = item["metadata"]["person1"], item["metadata"]["person2"]
    return f"{item['answer']}, {re.sub('|'.join(people), '_', asked)}"


def _form(item: dict[str, Any]) -> str | None:
    """The syllogism's form, its terms replaced by A, B and C; None if the generator's answer is wrong."""
    given = item["metadata"]
    statements = [given["premise1"], given["premise2"], given["conclusion"]]
    letters: dict[str, str] = {}

    def plain(text: str) -> _Statement:
        match = _STATEMENT.fullmatch(text)
        assert match is not None, text
        quantifier, subject, negation, predicate = match.groups()
        for term in (subject, predicate):
            if term not in letters:
                letters[term] = "ABC"[len(letters)]
        return quantifier + (" not" if negation else ""), letters[subject], letters[predicate]

    first, second, conclusion = map(plain, statements)
    if follows((first, second), conclusion) != (item["answer"] == "Yes"):
        return None
    return f"{first}, {second}, {conclusion}"


def _statements(item: dict[str, Any]) -> str:
    return str(item["metadata"]["statements"])


_TEMPLATES = {"family_relationships": _relation, "syllogism": _form, "knights_knaves": _statements}


@cache
def follows(premises: tuple[_Statement, ...], conclusion: _Statement) -> bool:
    """Whether a conclusion holds in every world of things A, B and C in which the premises do.

    As in Aristotle's syllogisms there is at least one A, one B and one C: "all A are B" includes
    that some are.

    Args:
        premises: Triples such as ``("All", "A", "B")``, ``("Some not", "B", "C")`` or ``("No", "C", "A")``.
        conclusion: Likewise.
    """
    # A kind of thing is the set of terms it falls under; a world is the set of kinds there are.
    kinds = [
        frozenset(term for term, has in zip("ABC", flags, strict=True) if has)
        for flags in product((False, True), repeat=3)
    ]
    worlds = chain.from_iterable(combinations(kinds, count) for count in range(1, len(kinds) + 1))
    return all(
        _holds(conclusion, world)
        for world in worlds
        if frozenset().union(*world) == frozenset("ABC") and all(_holds(one, world) for one in premises)
    )


def _holds(statement: _Statement, world: tuple[frozenset[str], ...]) -> bool:
    quantifier, subject, predicate = statement
    has = [predicate in kind for kind in world if subject in kind]
    return {"All": all(has), "No": not any(has), "Some": any(has), "Some not": not all(has)}[quantifier]
