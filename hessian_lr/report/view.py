"""What a report shows, ready to be set: the template knows these and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """A table whose first column heads the rows.

    Attributes:
        caption: What it shows and how to read it.
        columns: The heads.
        rows: Cells as text, one for each column; the template escapes them.
        prose: The columns are text, not numbers.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure in two renderings, as inline SVG.

    Attributes:
        wide, narrow: For a screen or paper, and for a phone.
        caption: How to read it.
    """

    wide: Markup
    narrow: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it.

    Attributes:
        title: The heading.
        lead: A sentence or two before everything else.
        drawings, tables: The content.
        code: Commands, each to be copied whole.
        lines: Further sentences, as a list.
    """

    title: str
    lead: str = ""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    code: Sequence[str] = ()
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Advice:
    """The recommendation.

    Attributes:
        sentence: What to do, with the range and the confidence; marked up, all names escaped.
        reasons: What it rests on.
    """

    sentence: Markup
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Part:
    """All results on one setting.

    Attributes:
        title: The model and the data.
        subtitle: What else tells it from others.
        advice: The recommendation.
        sections: In order.
    """

    title: str
    subtitle: str
    advice: Advice
    sections: Sequence[Section]
