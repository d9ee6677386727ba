"""The cost curve: its fits on planted growth, one real point at the smallest size, its committed results."""

import re

import pytest

from experiments.cost_curve import points, run, worker
from experiments.cost_curve.growth import growths, series
from experiments.cost_curve.points import AXES, QUICK_AXES, axis_shapes, requests
from hessian_lr.records import read_json, write_json

HERE = run.ROOT / "experiments" / "cost_curve"


def planted(exponents):
    """Measurements of the quick grid whose cost is each axis's value to a power."""
    made = []
    for axis, exponent in exponents.items():
        made += [
            {"shape": shape, "dtype": "float32", "what": "kept", "ratio": 1.2, "resident_before": 100}
            | {
                "product_seconds": 0.01 * value**exponent,
                "gradient_seconds": 1.0,
                "peak_bytes": 100 + value**2,
            }
            for value, shape in axis_shapes(axis, quick=True)
        ]
    return made


def test_planted_powers_are_found_and_what_was_resident_is_not_counted():
    exponents = {"tokens": 1.0, "rank": 0.5}
    for axis, exponent in exponents.items():
        found = {one["quantity"]: one for one in growths(planted({axis: exponent}), quick=True)}
        assert found["product_seconds"]["exponent"] == pytest.approx(exponent)
        assert found["own_bytes"]["exponent"] == pytest.approx(2.0)
        assert found["ratio"]["exponent"] == pytest.approx(0.0, abs=1e-9)


def test_a_failed_point_is_left_out_and_two_points_are_no_line():
    made = planted({"tokens": 1.0})
    made[0]["failed"] = "not done"
    assert len(series(made, "tokens", "float32", "kept", quick=True)) == len(QUICK_AXES["tokens"][2]) - 1
    assert not growths(made, quick=True)


def test_every_axis_passes_through_the_same_base_but_for_the_single_row():
    for axis in AXES:
        shapes = [shape for _, shape in axis_shapes(axis, quick=False)]
        assert (points.BASE in shapes) == (axis != "length of one row")
    assert len({str(one) for one in requests(quick=False)}) == len(requests(quick=False))


def test_a_product_of_a_small_model_is_measured_beside_its_gradient(tmp_path, monkeypatch):
    asked, answer = tmp_path / "request.json", tmp_path / "answer.json"
    monkeypatch.setattr(worker, "VOCABULARY", 64)
    # What the worker sets for its whole process is not for this one.
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(worker.torch, "set_num_threads", lambda _: None)
    shape = points.QUICK_BASE | {"rows": 1}
    write_json(
        asked,
        {"shape": shape, "dtype": "float32", "what": "kept", "threads": 1, "repeats": 1, "out": str(answer)},
    )
    monkeypatch.setattr("sys.argv", ["worker", str(asked)])
    worker.main()
    found = read_json(answer)
    assert found["graphs_kept"] == 1 and found["peak_bytes"] > 0
    assert found["ratio"] == pytest.approx(found["product_seconds"] / found["gradient_seconds"])


@pytest.fixture(scope="module")
def results():
    return read_json(HERE / "results.json")


@pytest.fixture(scope="module")
def page():
    return " ".join((HERE / "README.md").read_text(encoding="utf-8").split())


def ratios(results, axis, dtype, graphs):
    return [point["ratio"] for _, point in series(results["points"], axis, dtype, graphs, quick=False)]


def pretrained(results, dtype, graphs):
    wanted = points.BASE | {"pretrained": True}, dtype, graphs
    (found,) = [p for p in results["points"] if (p["shape"], p["dtype"], p["what"]) == wanted]
    return found


COLUMNS = [(dtype, graphs) for graphs in points.GRAPHS for dtype in points.DTYPES]


def test_the_pages_table_is_that_of_the_results(results):
    lines = (HERE / "README.md").read_text(encoding="utf-8").splitlines()
    named = {
        "one row of 128, 256, 512 tokens": ("length of one row", 2),
        "rank 1, 4, 16, 64": ("rank", 1),
        "3, 7, 15, 30 layers": ("layers", 1),
        "width 192, 384, 576, 768": ("width", 1),
    }
    for name, (axis, digits) in named.items():
        assert [int(x) for x in re.findall(r"\d+", name)] == list(AXES[axis][2])
        cells = [
            ", ".join(
                f"{r:.{2 if graphs == 'kept' else digits}f}" for r in ratios(results, axis, dtype, graphs)
            )
            for dtype, graphs in COLUMNS
        ]
        assert f"| {name} | {' | '.join(cells)} |" in lines
    for name, quantity in (
        ("two rows of 128 tokens, pretrained", "ratio"),
        ("against the library's own loss", "library_ratio"),
    ):
        cells = [f"{pretrained(results, *column)[quantity]:.2f}" for column in COLUMNS]
        assert f"| {name} | {' | '.join(cells)} |" in lines


def test_what_the_page_says_of_ratios_is_in_the_results(results, page):
    apart = {}
    for quantity in ("ratio", "library_ratio"):
        apart[quantity] = []
        for column in COLUMNS:
            (random,) = [p for x, p in series(results["points"], "rank", *column, quick=False) if x == 16]
            apart[quantity].append(abs(random[quantity] / pretrained(results, *column)[quantity] - 1))
    first, second, third, fourth = sorted(apart["ratio"])
    three = f"differ by {first:.1%}, {second:.1%} and {third:.1%} in three of the base's four ratios"
    assert f"{three} and by {fourth:.1%}" in page and apart["ratio"].index(fourth) == COLUMNS.index(
        ("bfloat16", "rebuilt")
    )
    assert f"by {min(apart['library_ratio']):.1%} to {max(apart['library_ratio']):.1%}" in page
    for dtype in points.DTYPES:
        assert (
            ", ".join(f"{r:.2f}" for r in ratios(results, "tokens", dtype, "kept")) + f" in {dtype}" in page
        )
    of_its_shape = {
        graphs: [
            p["ratio"]
            for p in results["points"]
            if p["what"] == graphs and (p["shape"]["hidden"], p["shape"]["layers"]) == (576, 30)
        ]
        for graphs in points.GRAPHS
    }
    told = " and ".join(f"{min(r):.1f} to {max(r):.1f}" for r in of_its_shape.values())
    docs = run.ROOT / "docs"
    for file in (docs / "how-it-works.md", docs / "how-to" / "memory.md"):
        assert told + " gradients" in " ".join(file.read_text(encoding="utf-8").split()), file


def test_what_the_page_says_of_targets_is_in_the_results(results):
    target = {"float32": 1.3, "bfloat16": 1.15}

    def met(axis):
        of = {dtype: ratios(results, axis, dtype, "kept") for dtype in points.DTYPES}
        return {dtype: [ratio <= target[dtype] for ratio in of[dtype]] for dtype in of}

    assert met("length of one row") == {"float32": [True, True, True], "bfloat16": [False, True, True]}
    assert met("tokens") == {"float32": [True, False, False], "bfloat16": [False, False, False]}
    assert met("width") == {"float32": [False, False, False, True], "bfloat16": [False] * 4}
    assert met("layers") == {"float32": [True, True, False, False], "bfloat16": [True, False, False, False]}
    assert all(pretrained(results, dtype, "kept")["ratio"] > target[dtype] for dtype in points.DTYPES)


def test_the_pages_exponents_are_fitted_to_its_points(results, page):
    growth = growths(results["points"], quick=False)
    assert growth == results["growth"]
    found = {(g["axis"], g["dtype"], g["graphs"], g["quantity"]): g for g in growth}

    def fit(axis, dtype, quantity, graphs="kept"):
        one = found[axis, dtype, graphs, quantity]
        return f"{one['exponent']:.2f} ± {one['standard_error']:.2f}"

    assert f"width^{fit('width', 'float32', 'ratio')} in float32" in page
    assert f"width^{fit('width', 'bfloat16', 'ratio')} in bfloat16" in page
    told = f"rows^{fit('tokens', 'float32', 'ratio')} and rows^{fit('tokens', 'bfloat16', 'ratio')} over"
    assert told in page
    assert f"(length^{fit('length of one row', 'bfloat16', 'ratio')})" in page
    both = fit("tokens", "float32", "own_bytes"), fit("tokens", "bfloat16", "own_bytes")
    assert "tokens^{} in float32 (^{} in bfloat16)".format(*both) in page
    assert f"layers^{fit('layers', 'float32', 'own_bytes')}" in page
    for quantity, told in (
        ("own_bytes", "memory with rank^{} to rank^{}"),
        ("ratio", "the ratio with rank^{} to rank^{}"),
    ):
        of_rank = [found[("rank", *column, quantity)]["exponent"] for column in COLUMNS]
        assert told.format(f"{min(of_rank):.2f}", f"{max(of_rank):.2f}") in page


def test_the_pages_peaks_against_a_step_are_those_of_the_results(results, page):
    def against_a_step(axis, dtype):
        lines = (series(results["points"], axis, dtype, what, quick=False) for what in ("rebuilt", "step"))
        return [
            product["peak_bytes"] / step["peak_bytes"] for (_, product), (_, step) in zip(*lines, strict=True)
        ]

    _, two, four = against_a_step("tokens", "float32")
    single = [f"{x:.2f}" for x in against_a_step("length of one row", "float32")]
    assert f"is {four:.2f} to {two:.2f} times a training step's for two or four rows of 128 tokens" in page
    assert f"but {single[0]}, {single[1]} and {single[2]} times for a single row of 128, 256 and 512" in page
    _, two, _ = against_a_step("tokens", "bfloat16")
    single = [f"{x:.2f}" for x in against_a_step("length of one row", "bfloat16")]
    assert f"bfloat16's is {two:.2f}, {single[0]}, {single[1]} and {single[2]} times" in page
