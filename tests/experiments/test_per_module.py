"""The ratios between two methods' modules: readable, and of the numbers they are given."""

from __future__ import annotations

import statistics

import pytest
from drawn import Drawn, assert_readable
from module_spectra import made_up

from experiments.per_module import run
from experiments.per_module.ratios import ratio_figure
from hessian_lr.errors import RequestError
from hessian_lr.figures.style import save
from hessian_lr.measure import ModuleSpectrum
from hessian_lr.records import read_json


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


@pytest.fixture(scope="module")
def page():
    return " ".join((run.HERE / "README.md").read_text(encoding="utf-8").split())


def test_the_page_tells_what_all_modules_cost(page):
    summary = read_json(run.HERE / "results" / "cost.json")
    cost = {row["row"]: row for row in summary["results"]}
    whole = {name: read_json(run.HERE / "results" / "cost" / f"{name}.json") for name in run.ROWS}
    for name, row in cost.items():
        seconds = {row: one["seconds_per_product"] * 210 * 3 for row, one in whole.items()}
        assert row["seconds_for_all_modules"] == pytest.approx(seconds[name])
        assert row["times_cheaper_than_naive"] == pytest.approx(
            seconds["naive-float32-subset"] / seconds[name]
        )
    told = {
        "naive-float32-subset": "| the usual recipe, float32 | {s} (from 14 modules) | | {gb} GB |",
        "ours-float32-subset": "| ours, float32 | {s} (from 14 modules) | {times} | {gb} GB |",
        "ours-bfloat16-all": "| ours, bfloat16, confirmed in float32 | {s} | {times} | {gb} GB |",
    }
    for name, line in told.items():
        row = cost[name]
        # Those that were extrapolated to the nearest ten.
        seconds = round(row["seconds_for_all_modules"], -1 if row["extrapolated"] else None)
        times, gb = f"{row['times_cheaper_than_naive']:.1f}", f"{row['peak_rss_bytes'] / 1e9:.1f}"
        assert line.format(s=f"{seconds:,.0f}", times=times, gb=gb) in page
        assert row["extrapolated"] == ("from 14 modules" in line)
    bfloat16, float32 = cost["ours-bfloat16-all"], cost["ours-float32-subset"]
    apart = "largest_relative_difference_of_lambda"
    assert f"up to {bfloat16[apart]:.1%} off it" in page
    assert float32[apart] == pytest.approx(1e-4, rel=0.05) and "agree with the recipe's to 1e-4" in page
    times = bfloat16["times_cheaper_than_naive"], float32["times_cheaper_than_naive"]
    assert "{:.1f} times in bfloat16, {:.1f} in float32".format(*times) in page
    without, both = (whole[f"ours-{dtype}-subset"] for dtype in ("float32", "bfloat16"))
    work = without["gradient_equivalents"], both["gradient_equivalents"]
    assert f"takes {work[1] - work[0]:.1f} of the {work[1]:.1f} gradients" in page
    assert f"{work[0]:.1f} without it" in page
    longer = without["gradient_seconds"] / both["gradient_seconds"]
    assert f"a gradient in float32 takes {longer:.1f} times as long as one in bfloat16" in page


def test_the_page_tells_what_each_method_took_and_found(page):
    found = {
        name: ModuleSpectrum.read(run.HERE / "results/modules" / f"{name}.json") for name in ("lora", "pissa")
    }
    for name, one in found.items():
        off = max(m.rounding / abs(m.lambda_max) for m in one.modules if m.rounding is not None)
        converged = [m.status for m in one.modules].count("converged")
        again = [m.rounding for m in one.modules].count(None)
        cells = (
            f"{one.matvecs / len(one.modules):.1f} | {one.gradient_equivalents:,.0f} | {one.seconds:,.0f} | "
            f"{converged} | {again} | {off:.0%}"
        )
        assert f"| {name} | {cells} |" in page
    lora = {m.name: m.lambda_max for m in found["lora"].modules}
    ratios = {}
    for m in found["pissa"].modules:
        ratios.setdefault(m.kind, []).append(m.lambda_max / lora[m.name])
    every = [ratio for those in ratios.values() for ratio in those]
    assert min(every) > 1 and "sharper than LoRA's in every module" in page
    published = read_json(run.HERE / "published.json")["median_ratio_to_lora"]["pissa"]
    q, k = (statistics.median(ratios[kind]) for kind in ("q_proj", "k_proj"))
    assert f"{statistics.median(every):.1f} times in the median of all" in page
    told = f"{q:.1f} times for q_proj and {k:.1f} for k_proj"
    assert f"{told}, where that study has {published['q_proj']} and {published['k_proj']}" in page
