"""What all figures share: colours, fonts, axes, and how a picture becomes two files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from ..atomic import write_bytes

# Okabe and Ito's colours, without yellow (too pale for a line on white) and black (axes and text).
_BLUE, _ORANGE, _GREEN, _RED, _PINK, _SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
#: Colour and marker of each method, the same in every figure. Six colours cannot tell fourteen
#: methods apart: each comes back with another marker.
METHOD_STYLES: dict[str, tuple[str, str]] = {
    "lora": (_BLUE, "o"),
    "init-ab": (_ORANGE, "s"),
    "milora": (_GREEN, "^"),
    "pissa": (_RED, "D"),
    "olora": (_PINK, "v"),
    "rslora": (_SKY, "P"),
    "dora": (_BLUE, "d"),
    "dora-exact": (_SKY, "d"),
    "lora-ga": (_ORANGE, "<"),
    "lora-ga-peft": (_ORANGE, "8"),
    "gralora": (_GREEN, ">"),
    "randlora": (_RED, "p"),
    "loft": (_PINK, "h"),
    "lora+": (_SKY, "*"),
}
UNKNOWN_STYLE = ("#767676", "o")
INK, MUTED, GRID, PAPER = "#222222", "#666666", "#E4E4E4", "#FFFFFF"
#: Inches across the column of a phone, at 96 pixels an inch; a figure this wide keeps its letters' size.
NARROW = 3.6

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.5,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.parse_math": False,  # a method may have a dollar in its name
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "hessian-lr",  # else the ids in the file differ each time
}

# Letters of a title or a label to an inch of a figure's width.
_LETTERS = 10
# How many times its lower end an axis' upper one is at least, and its ticks in a decade: the first that fits.
_TICKS = ((100, (1,)), (6, (1, 2, 5)), (0, (1, 1.5, 2, 3, 4, 5, 7)))
# Where a name may stand beside its point, in points, the best place first.
_PLACES = [(7 * dx, dy) for dy in (6, -6, 15, -15, 24, -24) for dx in (1, -1)]


@contextmanager
def styled() -> Iterator[None]:
    """The style sheet, for the time of the context; nothing of the caller's own shines through."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def method_style(method: str) -> tuple[str, str]:
    """Colour and marker of a method; one grey for all that have none of their own."""
    return METHOD_STYLES.get(method, UNKNOWN_STYLE)


def log_ticks(axis: Axis) -> None:
    """Ticks at decades, and as many between them as it takes for two to be read."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=next(subs for least, subs in _TICKS if high / low >= least)))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: short(value)))
    axis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
    axis.set_minor_formatter(NullFormatter())


def clipped(name: str) -> str:
    """A method's name as a figure has room for: a longer one would leave its axes none."""
    return name if len(name) <= 28 else f"{name[:27]}…"


def broken(text: str, figure: Figure) -> str:
    """``text``, in lines that fit the figure."""
    return textwrap.fill(text, int(_LETTERS * figure.get_figwidth()))


def short(value: float) -> str:
    """A number as its axis shows it: 300, 2, 0.1, 5e-4."""
    if 0.1 <= value < 10_000:
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def times(factor: float) -> str:
    """How many times as large, in two digits: 1.3×, 24×."""
    return f"{float(f'{factor:.2g}'):g}×"


def name_points(
    figure: Figure, axes: Axes, names: Sequence[tuple[str, float, float]], covered: Sequence[Bbox]
) -> None:
    """Write each name beside its point, where it hides no bar, point or other name if it can.

    Args:
        figure: The figure, complete but for the names.
        axes: Where the points are; its limits stay as they are.
        names: Name, x and y of each point.
        covered: Boxes in data coordinates that a name had better not hide.
    """
    figure.draw_without_rendering()  # only now is the place of anything known
    taken = [box.transformed(axes.transData).padded(2) for box in covered]
    frame = axes.get_window_extent()
    for _, x, y in names:
        left, bottom = axes.transData.transform((x, y)) - 7
        taken.append(Bbox.from_bounds(left, bottom, 14, 14))
    for name, x, y in names:
        text = axes.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        tried: list[tuple[float, int, dict[str, Any], Bbox]] = []
        for dx, dy in _PLACES:
            place = {
                "position": (dx, dy),
                "ha": "left" if dx > 0 else "right",
                "va": "bottom" if dy > 0 else "top",
            }
            text.set(**place)
            box = text.get_window_extent()
            hidden = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, frame)
            tried.append((hidden + outside, len(tried), place, box))
        _, _, place, box = min(tried)  # of equally good places the first
        text.set(**place)
        taken.append(box)


def _overlap(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else both.width * both.height


def save(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write ``path`` as SVG and as PNG, atomically; the same figure gives the same bytes.

    Raises:
        HessianLRError: the folder cannot be written.
    """
    svg, png = files(path)
    for file, metadata in ((svg, {"Date": None, "Creator": None}), (png, {"Software": None})):
        buffer = io.BytesIO()
        with styled():  # ticks are made as late as now
            figure.savefig(buffer, format=file.suffix[1:], dpi=200, metadata=metadata, facecolor="white")
        write_bytes(file, buffer.getvalue())
    return svg, png


def files(path: str | Path) -> tuple[Path, Path]:
    """The two files that ``save`` writes."""
    base = Path(path)
    if base.suffix.lower() in (".svg", ".png"):
        base = base.with_suffix("")
    # Not with_suffix: a name like qwen2.5 has a dot of its own.
    return base.with_name(f"{base.name}.svg"), base.with_name(f"{base.name}.png")
