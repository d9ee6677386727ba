"""The profile of a product: every kernel is for something, and the page is its results."""

from __future__ import annotations

import pytest
import torch

from experiments.profile.run import (
    ATTENTION,
    COPIES,
    ELEMENTWISE,
    HERE,
    LINEAR,
    kind_of,
    seconds_by_kind,
    table,
)
from hessian_lr.records import read_json


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("aten::mm", LINEAR),
        ("aten::bmm", ATTENTION),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", ATTENTION),
        ("aten::copy_", COPIES),
        ("aten::mul", ELEMENTWISE),
    ],
)
def test_a_kernel_is_counted_where_it_belongs(kernel, kind):
    assert kind_of(kernel) == kind


def test_all_of_the_work_is_counted_once():
    square, cube = torch.randn(300, 300), torch.randn(2, 200, 200)
    found = seconds_by_kind(lambda: (square @ square, torch.bmm(cube, cube)), 5)
    assert found["all"] == pytest.approx(
        sum(found[kind] for kind in (LINEAR, ATTENTION, COPIES, ELEMENTWISE))
    )
    assert min(found[LINEAR], found[ATTENTION]) > 0


def test_the_page_has_the_table_of_its_results():
    rows = read_json(HERE / "results.json")["results"]
    assert table(rows) in (HERE / "README.md").read_text(encoding="utf-8")
