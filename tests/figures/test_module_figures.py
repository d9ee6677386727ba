"""The heatmap of modules and the ratios between two methods': readable, and of the numbers they are given."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from drawn import Drawn, assert_readable

from hessian_lr.errors import RequestError
from hessian_lr.figures import heatmap_figure, ratio_figure
from hessian_lr.figures.style import save
from hessian_lr.measure import ModuleSharpness, ModuleSpectrum

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def made_up(seed=0, scale=1.0, layers=30, kinds=KINDS, **changed):
    """A spectrum without a model: λ spread over two decades."""
    draw = torch.Generator().manual_seed(seed)
    modules = [
        ModuleSharpness(
            name=f"layers.{layer}.{kind}",
            layer=layer,
            kind=kind,
            parameters=10,
            lambda_max=scale * 10 ** float(torch.randn((), generator=draw)),
            lambda_upper=None,
            lambda_min=None,
            residual=0.0,
            status="converged",
            products=3,
        )
        for layer in range(layers)
        for kind in kinds
    ]
    modules[0] = dataclasses.replace(modules[0], **changed)
    return ModuleSpectrum(tuple(modules), 0.95, 3 * len(modules), 1.0, 1.0, 1, 1.0, 1)


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


def test_figures_are_written_twice_alike_as_svg_and_png(tmp_path):
    for draw in (
        lambda: heatmap_figure(made_up()),
        lambda: ratio_figure({"pissa": made_up(1)}, made_up()),
    ):
        first, second = save(draw(), tmp_path / "a" / "smollm2.svg"), save(draw(), tmp_path / "b" / "smollm2")
        assert [path.name for path in first] == ["smollm2.svg", "smollm2.png"]
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_nothing_to_draw_is_said():
    with pytest.raises(RequestError, match="nothing to draw"):
        heatmap_figure(made_up(layers=1, kinds=("lm_head",), lambda_max=-1.0))
    with pytest.raises(RequestError, match="at least one method"):
        ratio_figure({}, made_up())
    with pytest.raises(RequestError, match="no module with a positive eigenvalue in both"):
        ratio_figure({"pissa": made_up(kinds=("fc",))}, made_up())
