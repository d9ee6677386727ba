"""Figures: readable whatever the data, and the same file from the same data."""

import dataclasses
import itertools
import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import scipy.integrate
import torch
from drawn import Drawn, assert_readable
from matplotlib.figure import Figure
from matplotlib.text import Annotation

import hessian_lr
from hessian_lr.alignment import align
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.figures import EigenvaluePoint, SweepPanel, density_figure, eigenvalue_figure, sweep_figure
from hessian_lr.figures.style import (
    METHOD_STYLES,
    UNKNOWN_STYLE,
    log_ticks,
    method_style,
    save,
    short,
)
from hessian_lr.score import Score, score
from hessian_lr.setting import Setting
from hessian_lr.spectrum import spectral_density
from hessian_lr.sweep import RunResult, Sweep

MEASURED = {  # method: eigenvalue, best learning rate
    "lora": (1.3, 3.6e-3),
    "init-ab": (2.7, 3.2e-3),
    "milora": (28, 2.4e-3),
    "pissa": (70, 7.7e-4),
    "olora": (338, 4.5e-4),
}


def point(method, eigenvalue, best, **changes):
    whole = Score(best, 0.6, best / 1.5, best * 1.6, False, None, None, None, None, None, None)
    ends = {name: changes.pop(name) for name in ("eigenvalue_low", "eigenvalue_high") if name in changes}
    low_high = {"eigenvalue_low": eigenvalue * 0.97, "eigenvalue_high": eigenvalue * 1.1} | ends
    return EigenvaluePoint(method, eigenvalue, score=dataclasses.replace(whole, **changes), **low_high)


def points():
    return [point(method, *pair) for method, pair in MEASURED.items()]


def panel(method, best, predicted):
    runs = []
    for k, seed in itertools.product(range(-16, -5), (0, 1)):
        lr = 10 ** (k / 4)
        away = math.log10(lr / best)
        final = None if away > 1.3 else 0.6 + 0.2 * away**2 + 0.005 * seed + max(0.0, away) ** 3
        diverged = final is None or final > 1.1
        runs.append(RunResult("k", Setting(method=method, seed=seed), lr, 1.1, final, 60, diverged, 1.0, 10))
    sweep = Sweep(Setting(method=method), tuple(runs), False)
    return SweepPanel(sweep, score(sweep, predicted, predicted / 1.6, predicted * 1.6))


def panels():
    return [panel(method, best, best * 1.2) for method, (_, best) in MEASURED.items()]


@pytest.fixture
def drawn():
    return Drawn()


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def names(figure):
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation)]


HARD_POINTS = {
    "five methods": points(),
    "one point": points()[:1],
    "two points, an upper end far above": [
        point("lora", 1.3, 3.6e-3, eigenvalue_high=9000.0),
        point("pissa", 70, 7.7e-4),
    ],
    "unknown ends": [
        point("lora", 1.3, 3.6e-3, eigenvalue_low=None, eigenvalue_high=None, band_low=None),
        point("pissa", 70, 7.7e-4, band_high=None),
    ],
    "crowded": [
        *points(),
        point("dora", 1.4, 3.6e-3),
        point("rslora", 1.5, 3.4e-3),
        point("my-own-method-with-a-long-name", 300, 4.6e-4),
    ],
    "censored": [*points()[:4], point("olora", 338, 4.5e-4, censored=True, band_low=None)],
    "methods again": [*points(), *points()],
    "negative lower end": [point("lora", 1.3, 3.6e-3, eigenvalue_low=-5.0), *points()[1:]],
}


@pytest.mark.parametrize("low", [1.01e-4, 1.6e-3, 3.01, 7.1])
@pytest.mark.parametrize("ratio", [2.25, 5.9, 6.1, 99, 101])
def test_two_ticks_of_a_log_axis_can_be_read(low, ratio):
    axis = Figure().add_subplot(xscale="log", xlim=(low, low * ratio)).xaxis
    log_ticks(axis)
    inside = [place for place in axis.get_majorticklocs() if low <= place <= low * ratio]
    assert 2 <= len(inside) <= 8
    assert [float(short(place)) for place in inside] == pytest.approx(inside)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("case", HARD_POINTS)
def test_eigenvalue_figure_is_readable(drawn, case, narrow):
    drawn(eigenvalue_figure(HARD_POINTS[case], narrow=narrow))
    assert_readable(drawn[0])
    lines = drawn[0].axes[0].get_xlim(), drawn[0].axes[0].get_ylim()
    for p in HARD_POINTS[case]:
        assert lines[0][0] < p.eigenvalue < lines[0][1]
        assert lines[1][0] < p.score.best_lr < lines[1][1]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_sweep_figure_is_readable(drawn, count, narrow):
    drawn(sweep_figure(panels()[:count], narrow=narrow))
    assert_readable(drawn[0])
    assert sum(axes.axison for axes in drawn[0].axes) == count


def test_the_fitted_slope_stands_with_its_interval_beside_the_classical_one(drawn):
    drawn(eigenvalue_figure(points()))
    fit = align(*zip(*MEASURED.values(), strict=True))
    texts = legend_texts(drawn[0])
    numbers = [f"{value:.2f}".replace("-", "−") for value in (fit.slope, fit.slope_low, fit.slope_high)]
    assert all(number in texts[0] for number in numbers)
    assert "95%" in texts[0]
    assert "slope −1" in texts[1]


def test_two_points_are_drawn_without_a_fit_and_it_says_so(drawn):
    drawn(eigenvalue_figure(points()[:2]))
    assert legend_texts(drawn[0])[0] == "no fitted slope: 2 points of at least 3"


def test_equal_best_rates_are_drawn_without_an_interval(drawn):
    drawn(eigenvalue_figure([point("lora", 1.3, 1e-3), point("pissa", 70, 1e-3), point("dora", 2, 1e-3)]))
    assert legend_texts(drawn[0])[0] == "fitted slope 0.00 (no interval, 3 points)"
    assert_readable(drawn[0])


def test_censored_points_are_hollow_and_left_out_of_the_fit(drawn):
    drawn(eigenvalue_figure(HARD_POINTS["censored"]))
    texts = legend_texts(drawn[0])
    assert "4 points" in texts[0]
    assert "hollow" in texts[-1]


def test_no_line_goes_through_points_that_are_all_left_out_of_the_fit(drawn):
    """The classical one through the only point looked as if that confirmed it."""
    drawn(eigenvalue_figure([point("olora", 338, 4.5e-4, censored=True)]))
    assert legend_texts(drawn[0])[0] == "no fitted slope: 0 points of at least 3"
    assert not any("classical" in text for text in legend_texts(drawn[0]))
    assert not any(line.get_linestyle() == "--" for line in drawn[0].axes[0].lines)
    assert_readable(drawn[0])


def test_an_upper_end_far_above_does_not_squeeze_the_points(drawn):
    drawn(eigenvalue_figure(HARD_POINTS["two points, an upper end far above"]))
    assert drawn[0].axes[0].get_xlim()[1] < 10 * 70
    assert any(line.get_marker() == ">" for line in drawn[0].axes[0].lines)


def test_each_point_is_named_unless_methods_come_again(drawn):
    drawn(eigenvalue_figure(points()))
    drawn(eigenvalue_figure([*points(), *points()]))
    assert [text.get_text() for text in names(drawn[0])] == list(MEASURED)
    assert names(drawn[1]) == []
    assert set(MEASURED) <= set(legend_texts(drawn[1]))


def test_points_without_a_place_on_a_log_scale_are_left_out(drawn):
    placeless = [point("dora", value, 1e-3) for value in (-1.0, math.inf, math.nan)]
    drawn(eigenvalue_figure([*points(), *placeless, point("loft", 2.0, 1e-3, best_lr=None)]))
    assert [text.get_text() for text in names(drawn[0])] == list(MEASURED)


def test_a_panel_shows_prediction_best_and_divergence(drawn):
    shown = panel("pissa", 7.7e-4, 1.1e-3)
    drawn(sweep_figure([shown]))
    axes = drawn[0].axes[0]
    verticals = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    assert verticals == [1.1e-3, shown.score.best_lr]
    crosses = next(line for line in axes.lines if line.get_marker() == "x")
    assert sorted(crosses.get_xdata()) == sorted(run.lr for run in shown.sweep.runs if run.diverged)
    assert axes.get_title(loc="left") == f"pissa  ({shown.score.factor_error:.1f}× off)"


def test_a_mean_alone_and_each_of_two_crosses_at_one_rate_are_seen(drawn):
    """Seeds 0 and 1 at three learning rates, of which the upper two diverged."""
    losses = {1e-3: 0.7, 1e-2: None, 1e-1: None}
    runs = tuple(
        RunResult("k", Setting(seed=seed), lr, 1.0, loss, 3, loss is None, 1.0, 1)
        for lr, loss in losses.items()
        for seed in (0, 1)
    )
    sweep = Sweep(Setting(), runs, True)
    drawn(sweep_figure([SweepPanel(sweep, score(sweep, None, None, None))]))
    (axes,) = drawn[0].axes
    (mean,) = (line for line in axes.lines if list(line.get_xdata()) == [1e-3])
    assert mean.get_marker() != "None" and list(mean.get_ydata()) == [0.7]
    (crosses,) = (line for line in axes.lines if line.get_marker() == "x")
    at = axes.transData.transform(crosses.get_xydata())
    gaps = [math.dist(a, b) for a, b in itertools.combinations(at, 2)]
    assert len(at) == 4 and min(gaps) * 72 / drawn[0].dpi > crosses.get_markersize()


def test_panels_without_a_diverged_run_are_laid_out_like_any_other(drawn):
    """A line without points once stood at the figure's corner, and the layout gave up over it."""
    whole = [
        dataclasses.replace(
            one, sweep=dataclasses.replace(one.sweep, runs=tuple(r for r in one.sweep.runs if not r.diverged))
        )
        for one in panels()[:3]
    ]
    drawn(sweep_figure(whole))
    (figure,) = drawn
    assert_readable(figure)
    legend = figure.legends[0].get_window_extent()
    assert all(axes.get_window_extent().y1 < legend.y0 for axes in figure.axes)


def test_a_sweep_in_which_everything_diverged_is_still_drawn(drawn):
    runs = tuple(RunResult("k", Setting(), lr, 1.0, None, 3, True, 1.0, 1) for lr in (1e-3, 1e-2))
    sweep = Sweep(Setting(), runs, True)
    drawn(sweep_figure([SweepPanel(sweep, score(sweep, None, None, None))]))
    assert_readable(drawn[0])
    assert "none learned" in drawn[0].axes[0].get_title(loc="left")


@pytest.mark.parametrize(("draw", "data"), [(eigenvalue_figure, points), (sweep_figure, panels)])
def test_the_same_data_give_the_same_files_whatever_the_callers_style(tmp_path, draw, data):
    first = save(draw(data()), tmp_path / "a" / "qwen2.5.svg")
    assert [path.name for path in first] == ["qwen2.5.svg", "qwen2.5.png"]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        mine = dict(matplotlib.rcParams)
        second = save(draw(data()), tmp_path / "b" / "qwen2.5")
        assert dict(matplotlib.rcParams) == mine
    assert [path.name for path in second] == ["qwen2.5.svg", "qwen2.5.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"<?xml")
    assert first[1].read_bytes().startswith(b"\x89PNG")
    assert b"<dc:date>" not in first[0].read_bytes()


@pytest.mark.parametrize("draw", [eigenvalue_figure, sweep_figure])
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(RequestError, match="nothing to draw"):
        draw([])


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HessianLRError, match="cannot write"):
        save(eigenvalue_figure(points()), tmp_path / "file" / "figure")


def test_where_all_diverged_the_axis_stands_upright_and_nothing_is_called_the_best(drawn):
    runs = [
        RunResult("k", Setting(), lr, 2.0, loss, 3, True, 1.0, 10) for lr, loss in ((1.0, None), (3.0, 5.0))
    ]
    sweep = Sweep(Setting(), tuple(runs), True)
    figure = sweep_figure([SweepPanel(sweep, score(sweep, 1e-2, 1e-3, 1e-1))])
    drawn(figure)
    low, high = figure.axes[0].get_ylim()
    assert low < 2.0 < high
    assert figure.axes[0].get_title(loc="left") == "lora  (none learned)"


def test_no_two_methods_look_alike_and_unknown_ones_are_grey():
    assert len(set(METHOD_STYLES.values())) == len(METHOD_STYLES)
    fixed = {"lora", "rslora", "dora", "pissa", "milora", "olora"}
    fixed |= {"init-ab", "lora-ga", "lora-ga-peft", "gralora", "randlora", "loft", "lora+", "dora-exact"}
    assert fixed == set(METHOD_STYLES)
    assert method_style("something-new") == UNKNOWN_STYLE
    assert UNKNOWN_STYLE not in METHOD_STYLES.values()


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (5e-3, "5e-3"), (0.01, "1e-2"), (0.2, "0.2"), (300.0, "300"), (1e5, "1e5")],
)
def test_ticks_are_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("figures", {"matplotlib.pyplot", "torch"}),
        ("validated", {"matplotlib"}),
        ("files", {"torch"}),
    ],
)
def test_drawing_needs_no_torch_and_reading_results_no_drawing(module, spared):
    code = f"import sys, hessian_lr.{module}; print({spared} & set(sys.modules))"
    root = Path(hessian_lr.__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert out.stdout.strip() == "set()"


def spectrum():
    """Fifty eigenvalues around 0, and one far out."""
    diagonal = torch.cat([torch.linspace(-0.5, 0.5, 50), torch.tensor([4.0])])
    return spectral_density(lambda v: diagonal * v, 51, probes=4, steps=12)


@pytest.mark.parametrize("narrow", [False, True])
def test_density_figure_is_readable(drawn, narrow):
    drawn(density_figure(spectrum(), "lora", title="lora: spectral density", narrow=narrow))
    assert_readable(drawn[0])


def test_density_figure_counts_eigenvalues(drawn):
    drawn(density_figure(spectrum(), "lora"))
    line = next(line for line in drawn[0].axes[0].lines if line.get_label() == "estimated density")
    x, y = line.get_data()
    assert scipy.integrate.trapezoid(y, x) == pytest.approx(51, rel=0.02)
    assert 0 < scipy.integrate.trapezoid(y[x > 2], x[x > 2]) < 5, "few, but not none"
    assert line.get_color() == METHOD_STYLES["lora"][0]
