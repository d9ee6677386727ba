"""The study of 2/λ: its search for the edge, its arithmetic, its tables as committed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.classical import drawn, findings, run


@pytest.mark.parametrize("start", range(-9, 10, 3))
@pytest.mark.parametrize(("edge", "best"), [(3, 2), (3, 0), (-4, -7)])
def test_the_search_ends_with_neighbours_of_the_edge_and_of_the_best(
    start: int, edge: int, best: int
) -> None:
    def trained(point: int) -> Any:
        diverged = point >= edge
        return SimpleNamespace(diverged=diverged, final_loss=None if diverged else abs(point - best))

    runs = run.find_edge(trained, start)
    assert min(point for point, one in runs.items() if one.diverged) == edge
    assert {edge - 1, best - 1, best, best + 1} <= set(runs)
    assert len(runs) <= 2 * (abs(start - edge) / run.STRIDE + 4)


def test_a_schedule_moves_the_edge_of_a_quadratic_from_2_over_lambda_towards_4() -> None:
    x = 2 * findings.scheduled_edge(30)
    shares = [0.0] + [(1 + math.cos(math.pi * t / 29)) / 2 for t in range(29)]
    assert abs(math.prod(1 - 0.999 * x * share for share in shares)) < 1
    assert abs(math.prod(1 - 1.001 * x * share for share in shares)) > 1
    # Jensen's formula for a rate that never ends falling.
    assert findings.scheduled_edge(2_000) == pytest.approx(2, rel=0.01)


def test_laws_that_made_up_methods_follow_are_found_and_others_miss() -> None:
    rows = [
        {"method": str(k), "lambda": 4.0**k, "bound": 2 / 4.0**k, "best": 0.1 * 2.0**-k} for k in range(5)
    ]
    assert max(findings.left_out(rows, findings.power_law)) == pytest.approx(1)
    # Proportional to 1/λ the best learning rates of the ends are off by what √λ makes of them.
    assert max(findings.left_out(rows, findings.proportional("bound"))) > 3
    alike = [row | {"best": 0.3 * row["bound"]} for row in rows]
    assert max(findings.left_out(alike, findings.proportional("bound"))) == pytest.approx(1)
    assert max(findings.left_out(alike, findings.constant)) > 10


def test_the_tables_are_what_the_results_say() -> None:
    readme = (findings.HERE / "README.md").read_text(encoding="utf-8")
    assert findings.tables(findings.rows()) in readme
    assert len(findings.rows()) == len(run.settings())


def test_the_readmes_tables_of_the_draws_are_those_of_the_results():
    readme = drawn.README.read_text(encoding="utf-8")
    assert drawn.table(drawn.settings()) in readme
    assert {one.key for one, _ in run.drawn()}.isdisjoint(one.key for one, _ in run.settings())
