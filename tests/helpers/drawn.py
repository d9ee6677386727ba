"""Figures as they would be written, and whether all that stands on one can be read."""

import itertools

from hessian_lr.figures.style import styled


class Drawn(list):
    """Keeps the figures it is called with, laid out as they would be written."""

    def __call__(self, figure):
        with styled():
            figure.draw_without_rendering()
        self.append(figure)


def assert_readable(figure):
    """Nothing that is written is cut off at the figure's edge or lies on something else that is written."""
    texts = [
        text for axes in figure.axes if axes.axison for text in (axes.title, axes._left_title, *axes.texts)
    ]
    for axes in figure.axes:
        if axes.axison:
            texts += [axes.xaxis.label, axes.yaxis.label]
            for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
                texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts += [text for text in (figure._supxlabel, figure._supylabel) if text is not None]
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in texts
        if text.get_text() and text.get_visible()
    ]
    boxes += [("legend", legend.get_window_extent()) for legend in figure.legends]
    assert len(boxes) > 5
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, f"{name} is cut off"
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, f"{name} is cut off"
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), f"{one} lies on {other}"
