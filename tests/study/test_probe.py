"""Short runs around a prediction: what is trained, what becomes of it, and what happens where it fails."""

from dataclasses import replace
from functools import partial

import pytest
import tiny_sweep
from predictions import predicted

from hessian_lr.digits import rate
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.predict import load_calibration, refine_learning_rate
from hessian_lr.predict.refine import start
from hessian_lr.study.probe import probed
from hessian_lr.sweep import RunResult, Sweep, engine, plan

CONSTANTS = load_calibration()
pytestmark = pytest.mark.usefixtures("one_thread")

RUN = replace(tiny_sweep.SETTING, steps=60, samples=8)


@pytest.fixture
def around(tmp_path):
    """``probed`` for the tiny model, with runs kept in a folder of the test's."""
    return partial(
        probed,
        RUN,
        tiny_sweep.tiny_model(),
        tiny_sweep.tiny_data(),
        constants=CONSTANTS,
        out=tmp_path,
        progress=lambda *_: None,
    )


def test_the_prediction_is_joined_with_the_best_of_runs_a_tenth_as_long(around):
    prediction = predicted(lr=0.05, lr_stability=0.2)
    found = around(prediction)
    probe = found.probe
    assert probe.steps == 6
    points = [plan.nearest_point(lr) for lr in probe.lrs]
    assert points == list(range(points[0], points[-1] + 1)), "neighbours on the grid, without a gap"
    assert plan.nearest_point(start(prediction, CONSTANTS, steps=60, batch_size=4)) in points
    assert probe.lrs[0] < probe.lr < probe.lrs[-1]
    assert found.notes[-1] == f"joined with {len(points)} runs of 6 steps, best at {rate(probe.lr)}"
    told = refine_learning_rate(prediction, probe.lr, steps=60, batch_size=4)
    assert (found.lr, found.lr_low, found.lr_high) == (told.lr, told.lr_low, told.lr_high)
    # 6 steps of 4 rows each, and passes over 8 held-out rows before them and after each, over the 8 that a
    # gradient of the sample takes.
    work = len(points) * 6 * 4 + 0.5 * 8 * (1 + len(points))
    assert found.gradient_equivalents == prediction.gradient_equivalents + work / 8
    assert found.seconds >= prediction.seconds + probe.seconds - 1e-3


def test_what_is_there_is_not_trained_again(around, monkeypatch):
    first = around(predicted(lr=0.05, lr_stability=0.2))
    monkeypatch.setattr(engine, "train_once", None)
    assert around(predicted(lr=0.05, lr_stability=0.2)) == first


def ended(monkeypatch, *losses):
    """Short runs that come out so, whatever is trained, from a held-out loss of 4."""

    def swept(setting, *_arguments, **_options):
        runs = [
            RunResult("", setting, lr, 4.0, loss, 6, False, 1.0, 0)
            for lr, loss in zip((0.1, 0.2, 0.3), losses, strict=True)
        ]
        return Sweep(setting, tuple(runs), censored=True)

    monkeypatch.setattr("hessian_lr.study.probe.sweep", swept)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ((3.0, 2.0, 1.0), "the best learning rate of 3 runs of 6 steps lies outside those that were run"),
        (
            (5.0, 4.0, 6.0),
            "not joined with short runs: none of 3 runs of 6 steps lowered the held-out loss",
        ),
    ],
)
def test_where_short_runs_tell_nothing_the_prediction_stays_as_it_was(around, monkeypatch, losses, told):
    ended(monkeypatch, *losses)
    prediction = predicted(lr=0.05, lr_stability=0.2)
    found = around(prediction)
    assert found.probe.lr is None and found.probe.losses == losses
    assert (found.lr, found.lr_low, found.lr_high) == (prediction.lr, prediction.lr_low, prediction.lr_high)
    assert found.predictor == "probe" and found.notes[-1] == told
    assert found.gradient_equivalents > prediction.gradient_equivalents, "they were paid for"


def test_a_prediction_without_sharpness_in_adams_geometry_is_left_alone(around):
    prediction = predicted(adam=None)
    found = around(prediction)
    assert found == replace(prediction, predictor="probe", notes=found.notes)
    assert "for want of the sharpness" in found.notes[-1]


def test_runs_that_fail_do_not_take_the_prediction_with_them(around, monkeypatch):
    def fail(*_arguments, **_options):
        raise HessianLRError("out of memory")

    monkeypatch.setattr(engine, "train_once", fail)
    prediction = predicted(lr=0.05, lr_stability=0.2)
    found = around(prediction)
    assert found.lr == prediction.lr and found.notes[-1] == "no short runs: out of memory"


@pytest.mark.parametrize(
    "changed", [{"log_half_width": 1e4}, {"exponents": {"lr_probe": 1e-5}, "scale": 9.0}]
)
def test_a_law_for_short_runs_that_gives_nothing_does_not_take_the_prediction_with_it(around, changed):
    constants = replace(CONSTANTS, probe=replace(CONSTANTS.probe, **changed))
    prediction = predicted(lr=0.05, lr_stability=0.2)
    found = around(prediction, constants=constants)
    assert found.lr == prediction.lr
    assert found.notes[-1].startswith(("not joined with", "no short runs")) and "'probe'" in found.notes[-1]


def test_a_run_too_short_to_have_a_tenth_is_refused():
    with pytest.raises(RequestError, match="too few"):
        probed(replace(RUN, steps=59), None, None, predicted(), CONSTANTS, out=None, progress=None)
