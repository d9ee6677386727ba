"""The page: what ``assemble`` found, set by the template and written whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from .. import __version__
from ..atomic import write_bytes
from ..errors import RequestError
from .assemble import assemble
from .documents import read_documents
from .view import Part

_SMALL = re.compile(r"\b\d[\d.]*e-\d+")  # 3.3e-3


def write_report(runs: Sequence[str | Path], out: str | Path) -> list[Part]:
    """Write a report of ``runs`` to ``out``; nothing is written where a file of theirs cannot be read.

    Args:
        runs: Folders that ``validate`` and ``sweep`` wrote, and files of ``predict --json`` and
            ``spectrum --json``.
        out: The HTML file: no other file belongs to it, and it loads nothing.

    Returns:
        What it shows, setting by setting.

    Raises:
        RequestError: one of the runs is missing or is something else, or ``out`` is named as another kind
            of file.
        HessianLRError: ``out`` cannot be written.
    """
    documents = read_documents(runs)
    if (kind := Path(out).suffix.lower()) not in ("", ".html", ".htm"):
        raise RequestError(
            f"the report is an HTML page, not a {kind} file: name it .html, and print it from a browser"
        )
    # Everything is escaped, whatever a file calls itself; only our own figures are marked as safe.
    environment = Environment(
        loader=PackageLoader("hessian_lr.report", ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    parts = assemble(documents)
    page = environment.get_template("page.html.jinja").render(parts=parts, version=__version__)
    write_bytes(out, page.encode())
    return parts


def _unbroken(text: str | Markup) -> Markup:
    """Escaped text whose numbers end no line at the hyphen of their exponent: copied, they stay numbers."""
    return Markup(_SMALL.sub(r'<span class="number">\g<0></span>', str(escape(text))))
