"""The side-by-side asks every tool for the same matrix: λ of a tiny model against its dense Hessian."""

from __future__ import annotations

import pytest
import torch
from tiny_models import adapted, dense_hessian, make_batch
from tolerances import DENSE32

from experiments.peers.running import LimitReached, Trace
from experiments.peers.summary import within
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
