"""The heatmap of modules: readable, and of the numbers it is given."""

from __future__ import annotations

import pytest
from drawn import Drawn, assert_readable
from module_spectra import KINDS, made_up

from hessian_lr.errors import RequestError
from hessian_lr.figures import heatmap_figure
from hessian_lr.figures.style import save


@pytest.fixture
def drawn():
    return Drawn()


SPECTRA = {
    "thirty layers": made_up(),
    "two layers, two kinds": made_up(layers=2, kinds=("q_proj", "mlp.c_proj")),
    "a hundred layers": made_up(layers=100),
    "one that stopped early": made_up(status="budget"),
}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("case", SPECTRA)
def test_heatmap_is_readable(drawn, case, narrow):
    title = "pissa on a-file-with-a-name-that-is-as-long-as-a-line.jsonl, seed 1: each module's eigenvalue"
    drawn(heatmap_figure(SPECTRA[case], title=title, narrow=narrow))
    assert_readable(drawn[0])


@pytest.mark.parametrize("scale", [1e-4, 0.3, 7.0])
def test_even_a_single_value_has_a_tick_to_read_it_by(drawn, scale):
    drawn(heatmap_figure(made_up(layers=1, kinds=("q_proj",), scale=scale)))
    axis = drawn[0].axes[1].yaxis
    low, high = axis.get_view_interval()
    assert any(low <= place <= high for place in axis.get_majorticklocs())


def test_heatmap_shows_every_value_in_its_place_and_frames_the_largest(drawn):
    spectrum = made_up(lambda_max=1e4)
    drawn(heatmap_figure(spectrum))
    axes = drawn[0].axes[0]
    (mesh,) = axes.collections
    shown = mesh.get_array().reshape(30, 7)
    for module in spectrum.modules:
        assert shown[module.layer, KINDS.index(module.kind)] == module.lambda_max
    assert [label.get_text() for label in axes.get_xticklabels()] == list(KINDS)
    (frame,) = axes.patches
    assert frame.get_xy() == (0, 0)
    assert "layer 0, q_proj" in drawn[0]._supxlabel.get_text()
    assert axes.yaxis_inverted()


def test_heatmap_leaves_blank_what_has_no_logarithm_and_marks_what_stopped_early(drawn):
    drawn(heatmap_figure(made_up(lambda_max=-1.0)))
    drawn(heatmap_figure(made_up(lambda_max=None, status="failed")))
    drawn(heatmap_figure(made_up(status="budget")))
    for figure in drawn[:2]:
        assert bool(figure.axes[0].collections[0].get_array().mask.reshape(30, 7)[0, 0])
        assert not figure.axes[0].lines
    assert drawn[2].axes[0].lines[0].get_xydata().tolist() == [[0.5, 0.5]]
    assert "limit" in drawn[2]._supxlabel.get_text()


def test_a_figure_is_written_twice_alike_as_svg_and_png(tmp_path):
    first, second = (
        save(heatmap_figure(made_up()), tmp_path / place) for place in ("a/smollm2.svg", "b/smollm2")
    )
    assert [path.name for path in first] == ["smollm2.svg", "smollm2.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_nothing_to_draw_is_said():
    with pytest.raises(RequestError, match="nothing to draw"):
        heatmap_figure(made_up(layers=1, kinds=("lm_head",), lambda_max=-1.0))
