"""A figure as SVG that can stand in a page with others and follows the page's colours."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib.figure import Figure

from ..figures.modules import MISSING
from ..figures.style import GRID, INK, MUTED, PAPER, styled

_SVG = "http://www.w3.org/2000/svg"
#: The style sheet's neutral colours, by the page's names for them; a method's colour is the same in both.
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper", MISSING: "--missing"}
_NAMES = {colour.lower(): f"var({name})" for colour, name in VARIABLES.items()}


def inline(figure: Figure, prefix: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element.

    Args:
        figure: As the figure functions give it.
        prefix: Put before every id, so that none of two figures is the same: matplotlib numbers its
            own from the start in each file, and a page has one name space for all.
        label: What the picture shows, for those who do not see it.
    """
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # A style element's rules would hold for the whole page, which has its own for figures.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        for name, value in list(element.attrib.items()):
            if name == "id":
                value = f"{prefix}-{value}"
            elif name.endswith("href"):
                del element.attrib[name]
                name, value = "href", value.replace("#", f"#{prefix}-", 1)
            elif name == "style":
                value = re.sub("#[0-9a-f]{6}", lambda colour: _NAMES.get(colour[0], colour[0]), value)
            element.attrib[name] = value.replace("url(#", f"url(#{prefix}-")
    root.attrib["role"], root.attrib["aria-label"] = "img", label
    return Markup(ElementTree.tostring(root, encoding="unicode"))
