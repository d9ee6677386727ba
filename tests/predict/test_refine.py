"""A prediction joined with short runs: what the law for that gives, and what it refuses."""

import math
from dataclasses import replace

import pytest
from predictions import predicted

from hessian_lr import refine_learning_rate
from hessian_lr.errors import RequestError
from hessian_lr.predict import load_calibration
from hessian_lr.predict.law import Quantities
from hessian_lr.predict.rate import rate
from hessian_lr.predict.refine import LEAST_STEPS, SHORTER, shorter, start
from hessian_lr.setting import Setting

CONSTANTS = load_calibration()
RUN = {"steps": 100, "batch_size": 4}


def test_the_joined_rate_is_the_law_of_its_two_quantities():
    law = CONSTANTS.probe
    found = refine_learning_rate(predicted(lr_stability=4e-3), 3e-3, **RUN)
    by_hand = law.scale * 3e-3 ** law.exponents["lr_probe"] * 4e-3 ** law.exponents["lr_stability"]
    assert found.lr == pytest.approx(by_hand, rel=1e-12)
    assert found.lr / found.lr_low == pytest.approx(found.lr_high / found.lr, rel=1e-12)
    assert found.predictor == "probe" and found.calibration == CONSTANTS.version


def test_other_units_of_the_parameters_change_nothing_else():
    """Parameters × k: all learning rates × k, the short runs' and 38/λ_P, and the answer with them."""
    k = 7.0
    one = refine_learning_rate(predicted(), 3e-3, **RUN)
    other = refine_learning_rate(predicted(lr_stability=2e-3 * k), 3e-3 * k, **RUN)
    assert other.lr == pytest.approx(k * one.lr, rel=1e-9)
    assert other.lr_high == pytest.approx(k * one.lr_high, rel=1e-9)


def test_short_runs_start_where_they_would_confirm_what_adams_geometry_says():
    prediction = predicted(lr=2.3e-4, lr_stability=9e-4)
    confirmed = refine_learning_rate(prediction, start(prediction, CONSTANTS, **RUN), **RUN)
    alone = CONSTANTS.adam(lr_stability=9e-4, lr_critical_start=1e-2, **RUN)
    assert confirmed.lr == pytest.approx(alone, rel=1e-9)


def test_a_longer_run_than_was_tried_widens_the_range_and_says_so():
    inside = refine_learning_rate(predicted(), 3e-3, **RUN)
    outside = refine_learning_rate(predicted(), 3e-3, steps=30_000, batch_size=4)
    assert outside.lr == inside.lr
    assert outside.lr_high > 2 * inside.lr_high
    assert any("outside the settings the constants were tried on" in note for note in outside.notes)


def test_notes_on_the_law_before_give_way_and_others_stay():
    """Of rows and batches that only curvature's laws were not tried on, nothing widens the joint range."""
    known = Quantities(1, 100, lr_stability=2e-3, lr_critical_start=1e-2, samples=2)
    before = rate("combined", CONSTANTS, known)
    assert [note.partition(" ")[0] for note in before.notes] == ["predicted", "outside"]
    assumed = "predicted for a run of 60 steps, as none were given"
    found = refine_learning_rate(predicted(notes=(*before.notes, "of the data", assumed)), 3e-3, **RUN)
    assert found.notes == ("of the data",)
    found = refine_learning_rate(predicted(notes=before.notes), 3e-3, steps=100, batch_size=1)
    (note,) = found.notes
    assert note.endswith("so the range is wider: batch_size 1 (tried on 2 … 4)")


def test_a_rate_that_is_less_well_known_makes_a_wider_range():
    rough = predicted()
    rough = replace(rough, adam=replace(rough.adam, stability_slack=2.0))
    one, other = (refine_learning_rate(p, 3e-3, **RUN) for p in (predicted(), rough))
    assert other.lr_high == pytest.approx(2 * one.lr_high)


@pytest.mark.parametrize("lr", [0.0, -1e-3, math.nan, math.inf, "1e-3", None])
def test_short_runs_need_a_learning_rate(lr):
    with pytest.raises(RequestError, match="must be a positive number"):
        refine_learning_rate(predicted(), lr, **RUN)


@pytest.mark.parametrize("name", ["steps", "batch_size"])
@pytest.mark.parametrize("count", [0, -60, 60.5, math.nan, None, "60", True])
def test_short_runs_need_a_run_of_whole_steps_and_rows(name, count):
    with pytest.raises(RequestError, match=f"{name} must be a whole number of .*, not {count!r}"):
        refine_learning_rate(predicted(), 3e-3, **RUN | {name: count})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"adam": None, "predictor": "eigenvalue"},
            "does not measure: use 'combined' or 'adam'",
        ),
        ({"status": "failed", "lr": None}, "a prediction that failed"),
    ],
)
def test_a_prediction_without_what_the_law_takes_is_refused(changes, said):
    with pytest.raises(RequestError, match=said):
        refine_learning_rate(predicted(**changes), 3e-3, **RUN)


def test_constants_of_an_earlier_version_are_refused():
    with pytest.raises(RequestError, match="have no law for short runs"):
        refine_learning_rate(predicted(), 3e-3, **RUN, calibration=replace(CONSTANTS, probe=None))


def test_short_runs_are_a_tenth_as_long_and_a_run_that_has_none_is_refused():
    long = Setting(steps=LEAST_STEPS, method="pissa")
    assert shorter(long) == replace(long, steps=LEAST_STEPS // SHORTER)
    with pytest.raises(RequestError, match="59 steps are too few"):
        shorter(replace(long, steps=59))
