"""The study of how large an adapter's parameters are: its quantity, and its page as measured."""

import pandas as pd
import pytest
from tiny_models import base_model, with_adapter
from tolerances import REFITTED

from experiments.lr_bench import axes_terms, scale
from experiments.lr_bench.axes import unseen
from experiments.lr_bench.evaluate import scored
from experiments.lr_bench.table import HERE, read
from hessian_lr.records import read_json


@pytest.fixture(scope="module")
def points():
    return pd.read_csv(scale.FILE)


def test_the_scale_is_the_mean_of_the_matrices_without_doras_magnitudes():
    model = with_adapter(base_model("llama"), target_modules=["q_proj"], use_dora=True)
    values = [p for name, p in model.named_parameters() if p.requires_grad and "magnitude" not in name]
    assert len(values) < sum(p.requires_grad for p in model.parameters())
    count = sum(p.numel() for p in values)
    assert scale.scale(model) == pytest.approx(sum(float(p.abs().sum()) for p in values) / count)


def test_what_the_scale_of_parameters_adds_stands_in_the_page_as_measured(points, monkeypatch):
    table, later = (scale.joined(one, points) for one in (scored(read()[0]), unseen()))
    assert len(table) == 132 and len(later) == 54, "all that have a rate from λ"
    told = read_json(scale.FILE.with_suffix(".json"))
    # One law's fits again: all three take half a minute.
    monkeypatch.setattr(scale, "SHIPPED", ("combined",))
    own = [row for row in told["models"] if row["law"] == "combined"]
    for row, kept in zip(scale.by_model(table, later), own, strict=True):
        assert row["median_factor"] == pytest.approx(kept["median_factor"], rel=REFITTED)
    page = (HERE.parent / "pages" / "scale.md").read_text(encoding="utf-8")
    assert axes_terms.shown(told["rows"]) in page
    assert scale.shown_models(told["models"]) in page


def test_the_same_adapter_in_other_units_has_the_same_ratio(points):
    """Parameters × k: the scale × k, and λ / k²."""
    table = scored(read()[0])
    k = 10.0
    other = table.assign(lr_eigenvalue=table["lr_eigenvalue"] * k)
    ratios = (
        scale.joined(one, points.assign(scale=points["scale"] * factor))["scale_over_eigenvalue"]
        for one, factor in ((table, 1.0), (other, k))
    )
    pd.testing.assert_series_equal(*ratios)
