"""The self-consistent edge of stability: found where it lies, told as the tables say."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import adapted, make_batch
from tolerances import DENSE64, REFITTED

from experiments.lr_bench import axes_terms, by_module, edge, groups, price, scatter, smaller, steadiness
from experiments.lr_bench.laws import AFTER, LAWS
from experiments.lr_bench.table import HERE
from hessian_lr.curvature.adam import PreconditionedOperator
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.curvature.vectors import flatten, unflatten
from hessian_lr.measure.adapter_modules import owned_parameters
from hessian_lr.measure.preconditioned import SMALLER, WARMUP_SHARE
from hessian_lr.records import read_json


def curve(slope, lrs=(1e-4, 1e-3, 1e-2)):
    """η·λ_P/38 = (η / 1e-3)^slope."""
    ratio = (np.array(lrs) / 1e-3) ** slope
    return pd.DataFrame({"lr": lrs, "lambda_p": ratio * edge.THRESHOLD / np.array(lrs)})


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kappa", [0.5, 1.0, 3.0])
def test_the_edge_of_a_power_law_is_exact(slope, kappa):
    assert edge.crossing(curve(slope), kappa) == pytest.approx(1e-3 * kappa ** (1 / slope))


def test_a_warm_up_that_diverged_lies_beyond_and_what_was_not_seen_is_not_told():
    lost = pd.concat([curve(1.0, (1e-4,)), pd.DataFrame({"lr": [1e-3]})])
    assert 1e-4 < edge.crossing(lost, 1.0) < 1e-3
    assert math.isnan(edge.crossing(curve(1.0), 0.01)) and math.isnan(edge.crossing(curve(1.0), 100.0))


@pytest.fixture(scope="module")
def bench():
    return price.bench()


def test_what_is_told_is_what_the_table_says(bench):
    points, told = pd.read_csv(edge.FILE), read_json(edge.FILE.with_suffix(".json"))
    points = points[points["lambda_p"].isna() | (points["lambda_p"] > 0)]
    bench = bench[bench["key"].isin(points.dropna()["key"])]
    own = edge.with_edge(bench, points, 0.25)
    laws = {law.name: law for law in (*edge.EDGE_LAWS, *LAWS)}
    for row in told["edges"]:
        if row["kappa"] == 0.25 and row["law"] in ("edge, eigenvalue", "combined"):
            for name, value in edge.judged(own, laws[row["law"]]).items():
                assert row[name] == (value if isinstance(value, str) else pytest.approx(value, rel=REFITTED))


def test_smaller_warm_ups_are_judged_as_the_committed_measurements_have_it(bench):
    found = pd.read_csv(smaller.FILE)
    assert set(found["key"]) == set(bench[smaller.share(bench) > 1]["key"])
    before = bench.set_index("key").loc[found["key"]].reset_index()
    assert (found[AFTER + "warmup_lr"] <= found[AFTER + "lr_stability"]).all()
    times = np.log(before["lr_critical_start"] * WARMUP_SHARE / found[AFTER + "warmup_lr"]) / np.log(SMALLER)
    assert times.to_numpy() == pytest.approx(times.round().clip(1).to_numpy(), abs=1e-3)
    written = read_json(smaller.FILE.with_suffix(".json"))["rows"]
    (law,) = (one for one in LAWS if one.name == "combined")
    for told in written:
        if told["law"] == "combined":
            made = smaller.with_smaller(bench, found, told["beyond"] or math.inf)
            anew = made[AFTER + "lr_stability"] != bench[AFTER + "lr_stability"]
            assert anew.sum() == told["changed"]
            for name, value in edge.judged(made, law).items():
                assert told[name] == (value if isinstance(value, str) else pytest.approx(value, rel=REFITTED))


def test_a_modules_product_is_its_block_of_the_whole_matrix():
    batches = [make_batch(2, 9, seed=1), make_batch(1, 12, seed=2)]
    model = adapted("llama", torch.float64)
    operator = HessianOperator(model, batches, dtype=torch.float64, memory_budget=2**40)
    draw = torch.Generator().manual_seed(0)
    root = torch.rand(operator.size, generator=draw, dtype=torch.float64) + 0.5
    whole = PreconditionedOperator(operator, root**-2)
    roots = unflatten(root, operator.parameters)
    for positions in list(owned_parameters(model, operator.parameters).values())[:3]:
        own = torch.cat([roots[position].flatten() for position in positions])
        vector = torch.randn(len(own), generator=draw, dtype=torch.float64)
        pieces = [torch.zeros_like(p) for p in operator.parameters]
        for position, piece in zip(
            positions, unflatten(vector, [pieces[position] for position in positions]), strict=True
        ):
            pieces[position] = piece
        image = unflatten(whole.matvec(flatten(pieces)), pieces)
        expected = torch.cat([image[position].flatten() for position in positions])
        found = by_module.block_product(operator, positions, own, vector)
        assert torch.allclose(found, expected, rtol=DENSE64, atol=DENSE64 * float(expected.norm()))


@pytest.mark.parametrize("study", [by_module, groups])
def test_a_study_of_lambda_p_tells_what_its_table_says(bench, study, monkeypatch, tmp_path):
    copied = tmp_path / study.FILE.name
    copied.write_bytes(study.FILE.read_bytes())
    monkeypatch.setattr(study, "FILE", copied)
    study.report(bench)
    told, kept = (
        pd.DataFrame(read_json(file.with_suffix(".json"))["laws"]) for file in (copied, HERE / copied.name)
    )
    pd.testing.assert_frame_equal(told, kept, rtol=REFITTED)


def test_another_warm_up_is_told_beside_the_packages_own(bench):
    """Three times as large a λ_P makes every learning rate a third, and changes no error of a fitted law."""
    base = steadiness.at_base(bench)
    assert len(base) == 19 and base["method"].nunique() == 10
    own = dict(zip(base["key"], base[AFTER + "lambda_preconditioned"], strict=True))
    times = {way: 1.0 for way in steadiness.WAYS} | {(0, 40, 1.0): 3.0}
    points = pd.DataFrame(
        [
            {"key": key, "lambda_p": value * times[way]} | dict(zip(steadiness.WAY, way, strict=True))
            for key, value in own.items()
            for way in steadiness.WAYS
        ]
    )
    points.loc[(points["seed"] == 2) & (points["key"] == base["key"][0]), "lambda_p"] = math.nan
    rows = {tuple(row[name] for name in steadiness.WAY): row for row in steadiness.findings(base, points)}
    assert set(rows) == set(steadiness.WAYS)
    assert [rows[0, 40, 1.0][name] for name in ("low", "median", "high")] == pytest.approx([3, 3, 3])
    assert rows[2, 10, 1.0]["lost"] == 1 and rows[0, 40, 1.0]["lost"] == 0
    (before, after) = (rows[way]["laws"][0] for way in (steadiness.OWN, (0, 40, 1.0)))
    assert after["method_median"] == pytest.approx(before["method_median"], rel=REFITTED)


def test_how_steady_lambda_p_is_stands_in_the_page_as_measured(bench):
    points, told = pd.read_csv(steadiness.FILE), read_json(steadiness.FILE.with_suffix(".json"))["rows"]
    found = steadiness.findings(steadiness.at_base(bench), points)
    page = (HERE.parent / "pages" / "steadiness.md").read_text(encoding="utf-8")
    for row, kept in zip(found, told, strict=True):
        assert row["median"] == pytest.approx(kept["median"], rel=REFITTED)
        assert steadiness.told(kept) in page


def test_what_the_scatter_of_rows_tells_is_what_its_table_says(bench):
    points, told = pd.read_csv(scatter.FILE), read_json(scatter.FILE.with_suffix(".json"))
    own = scatter.joined(bench, points)
    assert len(own) == len(points) == 138
    for row, kept in zip(scatter.biases(own), told["sides"], strict=True):
        assert row["law"] == kept["law"] and row["rho"] == pytest.approx(kept["rho"], abs=REFITTED)
    page = (HERE.parent / "pages" / "scatter.md").read_text(encoding="utf-8")
    tables = (
        scatter.shown_real(scatter.real()),
        scatter.shown_sides(told["sides"]),
        axes_terms.shown(told["rows"]),
    )
    assert all(table in page for table in tables)
    share = points["error"] / points["lambda_p"]
    assert f"{share.median():.2f} in the median and above 0.7 in {(share > 0.7).sum()} of them" in page


def test_a_power_of_the_scatter_is_found_where_it_makes_the_best(bench):
    """As if the best learning rate had gone with the square of it."""
    own = scatter.joined(bench, pd.read_csv(scatter.FILE))
    made = own.assign(best_lr=own["best_lr"] * own["scatter_after"] ** 2)
    (law,) = (one for one in LAWS if one.name == "combined")
    names = scatter.TERMS["λ_P"]
    before, after = (
        axes_terms.fit(axes_terms.with_terms(law, names), table)[1 + len(law.terms)] for table in (own, made)
    )
    assert 1.7 < after - before <= 2, "the prior draws it to 0"
