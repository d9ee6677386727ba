"""What the pages take from elsewhere in the repository when they are built, so that it cannot go stale."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from mkdocs.structure.files import File, Files

from hessian_lr import cli

COMMANDS = "<!-- commands -->"
# Figures and studies, under the names that they have in the repository.
_FROM_ROOT = ("figures/*.png", "figures/*.svg", "experiments/*/README.md", "experiments/*/pages/*.md")
_COLUMNS = "90"


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's figures and the studies' own pages to those of docs/."""
    root = Path(config.config_file_path).parent
    for pattern in _FROM_ROOT:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put every command's ``--help`` in the place of the mark, and lead links to what ``on_files`` added."""
    if not page.file.generated_by:
        # In the repository they lead out of docs/, which is the site's root.
        markdown = re.sub(r"\]\(\.\./((?:\.\./)*(?:experiments|figures)/)", r"](\1", markdown)
    return markdown.replace(COMMANDS, _commands()) if COMMANDS in markdown else markdown


def _commands() -> str:
    names = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    return "\n\n".join(f"## {name}\n\n```text\n{_help(name)}\n```" for name in names)


def _help(*command: str) -> str:
    said = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=_COLUMNS), contextlib.redirect_stdout(said):
        cli.main([*command, "--help"])
    return said.getvalue().strip()
