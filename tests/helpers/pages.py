"""Pages of Markdown as programs: their blocks of code, and a tiny world in which they run as they stand.

What a block is says its language:

- ``python`` runs, in one namespace for the page, which has ``batches`` from the start; a block
  ``text title="prints"`` after it is what it prints.
- ``console`` runs its lines ``$ hessian-lr …``; the lines between them are what the command before says, on
  either stream.
- a block with a file's name as its title is that file.
- ``text`` and ``json`` are only read.

What it says is compared as doctest does, blank for blank, ``...`` for anything. A comment
``<!-- not run: REASON -->`` on the line above keeps a block from running.
"""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import io
import os
import re
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_text import CHAT, byte_tokenizer, sums, tiny_llama, write_rows

from hessian_lr import data
from hessian_lr.cli import main

ROOT = Path(__file__).parents[2]
LANGUAGES = {"python", "console", "text", "json", "jsonl", "yaml"}
PRINTS = "prints"
# Sizes that decide how long a command takes and nothing of what the pages are about.
SMALL = {"--samples": 2, "--batch-size": 1, "--steps": 3, "--max-length": 320}
SIZED = {"predict", "spectrum", "validate"}

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- not run: (?P<reason>.+?) -->\n *)?"
    r'```(?P<language>\S+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^ *```$',
    flags=re.DOTALL | re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``reason``: why it is not run, if it is not."""

    language: str
    title: str | None
    code: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(m["language"], m["title"], textwrap.dedent(m["code"]), m["reason"])
        for m in _BLOCK.finditer(text)
    ]
    assert len(found) * 2 == len(re.findall(r"^ *```", text, flags=re.MULTILINE)), f"{page}: a stray fence"
    return found


def build_world(root: Path) -> Path:
    """A model that has learned something of the task math, so that steps can be too long for it."""
    tokenizer, model = byte_tokenizer(chat_template=CHAT), tiny_llama(num_hidden_layers=1)
    rows = data.load("math", tokenizer, max_length=SMALL["--max-length"]).train[:80]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in data.make_batches([*rows, *rows], 4, tokenizer.pad_token_id):
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


def short(generate: Callable[[str], Any]) -> Callable[[str], Any]:
    """Built-in tasks of a few rows' beginnings: whole, they take most of a page's time."""

    def some(name: str) -> Any:
        rows = generate(name)
        train, heldout = (
            [(prompt[:80], response[:20]) for prompt, response in pairs[:most]]
            for pairs, most in ((rows.train, 100), (rows.heldout, 6))
        )
        return dataclasses.replace(rows, train=tuple(train), heldout=tuple(heldout))

    return some


def furnish(folder: Path, model: Path) -> dict[str, object]:
    """What pages take for granted: a model at path/to/model, rows of data; the namespace of their Python."""
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "model").symlink_to(model)
    for name in ("experiments", "examples"):
        (folder / name).symlink_to(ROOT / name)
    write_rows(folder / "train.jsonl", sums(8))
    task = data.load(str(folder / "train.jsonl"), byte_tokenizer())
    return {"batches": data.make_batches(task.train[:24], 4, 2)}


def run(page: Path, namespace: dict[str, object]) -> int:
    """Run the page's blocks in the present folder; the number of those that were run."""
    done, said = 0, None
    for block in blocks(page):
        if block.reason:
            continue
        if block.language == "text":
            if block.title == PRINTS:
                assert said is not None, f"{page.name}: nothing was run that could print\n{block.code}"
                same(block.code, said, page.name)
        elif block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.code, str(page), "exec"), namespace)
            said, done = out.getvalue(), done + 1
        elif block.language == "console":
            _console(block.code, page.name)
            done += 1
    return done


def _console(code: str, where: str) -> None:
    joined = code.replace("\\\n", " ")
    for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        program, *arguments = shlex.split(os.path.expandvars(line), comments=True)
        assert program == "hessian-lr", f"{where}: {line!r} is not ours to run: say why not above the block"
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            status = main(small(arguments))
        if expected.strip():
            same(expected, out.getvalue(), f"{where}: $ {line}")
        assert (status != 0) == ("hessian-lr: error:" in expected), f"{where}: $ {line}\n{out.getvalue()}"


def small(arguments: list[str]) -> list[str]:
    """The command with smaller sizes, where it has larger ones or none; what is no number stays."""
    if not arguments or arguments[0] not in SIZED or "--help" in arguments:
        return arguments
    made = list(arguments)
    for option, most in SMALL.items():
        if option not in made:
            made += [option, str(most)]
        elif (given := made[made.index(option) + 1]).isdigit():
            made[made.index(option) + 1] = str(min(int(given), most))
    return made


def same(want: str, got: str, where: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(want, got, flags), f"{where}\nexpected:\n{want}\ngot:\n{got}"
