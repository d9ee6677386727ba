"""The built-in task families: the same rows everywhere, generated on this machine but for HumanEval's."""

from __future__ import annotations

from collections.abc import Callable

from .families import code, code_humaneval, commonsense, instruction, math
from .families.rows import TaskRows

TASKS: dict[str, str] = {
    "math": "grade-school word problems with worked answers (85 templates, 17 of them held out)",
    "code": "codeio problems and their Python functions, rows of up to 1,700 bytes "
    "(34 other codeio problems held out, not HumanEval)",
    "code-humaneval": "codeio problems to train on, HumanEval's signatures and solutions held out "
    "(the 162 of 164 of up to 1,700 bytes; fetched once; loss only, no code is run)",
    "commonsense": "synthetic logic: family relations, syllogisms, islanders who lie "
    "(question forms held out; no world knowledge)",
    "instruction": "synthetic text instructions: count, filter, sort, reverse, reorder "
    "(lengths, letters and sentences held out)",
}

_BUILDERS: dict[str, Callable[[], TaskRows]] = {
    "math": math.rows,
    "code": code.rows,
    "code-humaneval": code_humaneval.rows,
    "commonsense": commonsense.rows,
    "instruction": instruction.rows,
}


def generate(name: str) -> TaskRows:
    """The rows of the built-in family ``name``, a key of ``TASKS``.

    Raises:
        HessianLRError: a file of its is not in the cache and cannot be fetched.
    """
    return _BUILDERS[name]()
