"""The side-by-side asks every tool for the same matrix: λ of a tiny model against its dense Hessian."""

from __future__ import annotations

import pytest
import torch
from tiny_models import adapted, dense_hessian, make_batch
from tolerances import DENSE32

from experiments.peers import run
from experiments.peers.running import LimitReached, Trace
from experiments.peers.summary import markdown, read_rows, within
from experiments.peers.tools import registry

BATCHES = [make_batch(1, 9, 0), make_batch(2, 12, 1, padding=3)]


@pytest.mark.parametrize("name", ["truth", "naive", "eigenthings-weighted", "curvlinops-rewritten"])
def test_every_tool_that_can_answers_the_same_question(name, tmp_path):
    tool = registry(1)[name]
    if tool.package not in (None, "hessian-lr"):
        pytest.importorskip({"hessian-eigenthings": "hessian_eigenthings"}.get(tool.package, "curvlinops"))
    truth = float(torch.linalg.eigvalsh(dense_hessian(adapted("llama"), BATCHES))[-1])
    trace = Trace(tmp_path / "partial.json", 40, 60)
    value = tool.measure(adapted("llama", torch.float32), BATCHES, trace, 0)
    assert value == pytest.approx(truth, rel=DENSE32)
    # A tiny Krylov space is soon exhausted; what follows is no longer a recurrence, and has no estimate.
    known = [one["estimate"] for one in trace.products if one["estimate"] is not None]
    assert known[-1] == pytest.approx(truth, rel=DENSE32)


def test_a_tool_stops_at_its_limit(tmp_path):
    trace = Trace(tmp_path / "partial.json", 3, 60)
    with pytest.raises(LimitReached, match="3 products"):
        registry(1)["naive"].measure(adapted("llama", torch.float32), BATCHES, trace, 0)
    assert len(trace.products) == 3


def test_an_estimate_must_come_within_5_percent_and_stay():
    estimates = [0.5, 0.97, 1.2, 0.96, 1.0]
    products = [{"seconds": 2.0 * k, "estimate": e} for k, e in enumerate(estimates, start=1)]
    assert within(products, 1.0) == (4, 8.0)
    assert within(products, 2.0) is None


def test_the_table_is_that_of_the_results():
    results = run.HERE / "results"
    assert (results / "table.md").read_text(encoding="utf-8") == markdown(read_rows(results))


@pytest.fixture(scope="module")
def of_two_rows():
    """By method, what each tool came to on two rows."""
    rows = [row for row in read_rows(run.HERE / "results") if row.samples == 2]
    return {method: {r.tool: r for r in rows if r.method == method} for method in ("lora", "pissa")}


@pytest.fixture(scope="module")
def page():
    return " ".join((run.HERE / "README.md").read_text(encoding="utf-8").split())


def test_the_page_tells_how_soon_two_rows_were_known_to_5_percent(of_two_rows, page):
    for method, tools in of_two_rows.items():
        reached = {tool: row.reached[1] for tool, row in tools.items() if row.reached}
        ours = reached["ours-bfloat16"]
        others = [s for tool, s in reached.items() if tool not in ("truth", "ours-bfloat16", "ours-float32")]
        low, high = min(others), max(others)
        told = {
            "lora": "after {} s in bfloat16 and {} s in float32; the five others that get there take",
            "pissa": "{} s in bfloat16, {} s in float32; the others",
        }[method].format(f"{ours:.1f}", f"{reached['ours-float32']:.1f}")
        times = f"so {low / ours:.1f} to {high / ours:.1f} times as long as bfloat16"
        assert f"{told} {low:.1f} to {high:.1f} s, {times}" in page
        assert method == "pissa" or len(others) == 5


def test_the_page_tells_where_two_rows_were_stopped_by_each_tools_own_rule(of_two_rows, page):
    lora, pissa = of_two_rows.values()
    lora_stop, pissa_stop = (
        {tool: row.stop[1] for tool, row in one.items() if row.stop} for one in (lora, pissa)
    )
    names = ("ours-float32", "ours-bfloat16")
    ours = [stop[name] for stop in (lora_stop, pissa_stop) for name in names]
    naive = lora_stop["naive"], pissa_stop["naive"]
    low = [-100 * rows[name].error for rows in (lora, pissa) for name in names]
    own = f"ours stops after {min(ours):.0f} to {max(ours):.0f} s, {min(low):.1f} to {max(low):.1f}% low"
    assert f"{own}; the naive recipe after {naive[0]:.0f} and {naive[1]:.0f} s" in page
    theirs = [s for stop in (lora_stop, pissa_stop) for tool, s in stop.items() if "eigenthings" in tool]
    assert f"hessian-eigenthings after {min(theirs):.0f} to {max(theirs):.0f} s (its 20 steps)" in page
    wrong = lora_stop["pyhessian-batch"], pissa_stop["pyhessian-batch"]
    assert f"PyHessian stops first, after {wrong[1]:.0f} and {wrong[0]:.0f} s" in page
    products = f"{lora['ours-float32'].stop[0]} products against {lora['naive'].stop[0]}"
    assert (
        f"On plain LoRA ours takes {ours[0]:.1f} s in float32 and {ours[1]:.1f} s in bfloat16 against the "
        f"naive recipe's {naive[0]:.1f} s ({products}), {naive[0] / ours[0]:.1f} and "
        f"{naive[0] / ours[1]:.1f} times less" in page
    )
    assert (
        f"On PiSSA it takes {ours[2]:.1f} s and {ours[3]:.1f} s against {naive[1]:.1f} s, "
        f"{naive[1] / ours[2]:.1f} and {naive[1] / ours[3]:.1f} times less" in page
    )


def test_the_page_tells_what_memory_two_rows_took(of_two_rows, page):
    exact = ("naive", "eigenthings", "eigenthings-weighted", "pyhessian-batch", "curvlinops-rewritten")

    def peaks(*tools):
        return [min(rows[t].peak for t in tools if t in rows) / 1e9 for rows in of_two_rows.values()]

    told = "%.2f and %.2f GB against %.2f and %.2f GB of the best exact peer"
    assert told % (*peaks("ours-float32"), *peaks(*exact)) in page
    told = "met against the exact peers (%.2f and %.2f GB), not against finite differences (%.2f and %.2f GB)"
    assert told % (*peaks("ours-bfloat16"), *peaks("eigenthings-differences")) in page


def test_the_page_tells_how_far_off_power_iteration_stops(of_two_rows, page):
    lora, pissa = (rows["pyhessian-batch"] for rows in of_two_rows.values())
    told = f"stops at {lora.value:.2f} where λ = {lora.truth:.2f}".replace("-", "−")
    assert f"{told} and −λ lies opposite; on PiSSA it stops {-pissa.error:.0%} low" in page
    for rows in of_two_rows.values():
        assert (
            f"{rows['truth'].truth:.4g}" == f"{rows['truth'].second_truth:.4g}"
            and "agree to 4 digits" in page
        )
