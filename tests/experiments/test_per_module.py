"""The ratios between two methods' modules: readable, and of the numbers they are given."""

from __future__ import annotations

import pytest
from drawn import Drawn, assert_readable
from module_spectra import made_up

from experiments.per_module.ratios import ratio_figure
from hessian_lr.errors import RequestError
from hessian_lr.figures.style import save


@pytest.fixture
def drawn():
    return Drawn()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_ratio_figure_is_readable(drawn, count):
    spectra = {method: made_up(i, 4.0) for i, method in enumerate(("pissa", "milora", "olora", "rslora"))}
    theirs = {
        "published": {"pissa": {"k_proj": 8.5}},
        "source": "median in arXiv 2602.04998v2 (a model, r = 128)",
    }
    drawn(ratio_figure(dict(list(spectra.items())[:count]), made_up(9), **theirs))
    assert_readable(drawn[0])
    assert sum(axes.axison for axes in drawn[0].axes) == count


def test_ratios_are_of_the_same_module_and_their_median_stands_above(drawn):
    drawn(ratio_figure({"pissa": made_up(1, 5.0)}, made_up(1), published={"pissa": {"k_proj": 8.5}}))
    axes = drawn[0].axes[0]
    assert axes.get_title(loc="left") == "pissa  (median 5×)"
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_ydata()) for line in points) == 210
    assert all(value == pytest.approx(5.0) for line in points for value in line.get_ydata())
    (theirs,) = [line for line in axes.lines if line.get_marker() == "D"]
    assert theirs.get_ydata()[0] == 8.5
    assert 1 < theirs.get_xdata()[0] < 1.5


def test_a_pair_without_two_positive_values_is_left_out(drawn):
    drawn(ratio_figure({"pissa": made_up(1, lambda_max=-2.0)}, made_up(2)))
    drawn(ratio_figure({"pissa": made_up(1)}, made_up(2, lambda_max=None)))
    for figure in drawn:
        points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
        assert sum(len(line.get_ydata()) for line in points) == 209


def test_ratios_are_written_twice_alike_as_svg_and_png(tmp_path):
    first, second = (
        save(ratio_figure({"pissa": made_up(1)}, made_up()), tmp_path / place)
        for place in ("a/smollm2.svg", "b/smollm2")
    )
    assert [path.name for path in first] == ["smollm2.svg", "smollm2.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_no_ratio_to_draw_is_said():
    with pytest.raises(RequestError, match="at least one method"):
        ratio_figure({}, made_up())
    with pytest.raises(RequestError, match="no module with a positive eigenvalue in both"):
        ratio_figure({"pissa": made_up(kinds=("fc",))}, made_up())
