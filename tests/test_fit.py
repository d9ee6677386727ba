"""Constants fitted to sweeps: planted laws are found again."""

import math

import pytest

from hessian_lr.errors import RequestError
from hessian_lr.predict.calibration import Calibration, PowerLaw
from hessian_lr.predict.fit import Observation, fit

CURRENT = Calibration(
    schema=1,
    version="before",
    adam=PowerLaw(1.0, {"lr_stability": 1.0}, {}, 0.3, 5, {"scale": "elsewhere"}),
    eigenvalue=PowerLaw(
        1.0,
        {"lambda_ratio": -0.4, "batch_size": 0.5, "steps": -0.26},
        {"batch_size": 4, "steps": 60},
        0.5,
        5,
        {"steps": "a paper"},
    ),
)


def observed(best_lr, **changes):
    values = {"lr_stability": 1.0, "lambda_ratio": None, "batch_size": 4, "steps": 60} | changes
    return Observation(source="a run", method="lora", best_lr=best_lr, **values)


def test_the_scale_is_the_geometric_mean_and_the_scatter_leaves_one_out():
    """ln η* = 0, 0, 3: left out, each is missed by 1.5, 1.5 and 3, of root mean square √4.5."""
    law = fit([observed(1.0), observed(1.0), observed(math.e**3)], CURRENT).adam
    assert law.scale == pytest.approx(math.e)
    assert law.log_scatter == pytest.approx(math.sqrt(4.5))
    assert law.exponents == {"lr_stability": 1.0} and law.settings == 3


def planted(ratio, batch_size, steps):
    return 0.002 * ratio**-0.7 * (batch_size / 4) ** 0.5 * (steps / 60) ** -0.26


def test_from_four_ratios_on_their_exponent_is_fitted_and_the_others_stay():
    settings = [(1.0, 4, 60), (3.0, 8, 60), (10.0, 4, 200), (200.0, 16, 30)]
    rows = [
        observed(planted(*setting), lambda_ratio=setting[0], batch_size=setting[1], steps=setting[2])
        for setting in settings
    ]
    law = fit(rows, CURRENT).eigenvalue
    assert law.scale == pytest.approx(0.002)
    assert law.exponents == pytest.approx({"lambda_ratio": -0.7, "batch_size": 0.5, "steps": -0.26})
    assert law.log_scatter == pytest.approx(0, abs=1e-9)
    assert law.sources["steps"] == "a paper"
    for (ratio, batch_size, steps), row in zip(settings, rows, strict=True):
        assert law(lambda_ratio=ratio, batch_size=batch_size, steps=steps) == pytest.approx(row.best_lr)


def test_from_fewer_ratios_only_the_scale_is_fitted():
    rows = [observed(5 * ratio**-0.4, lambda_ratio=ratio) for ratio in (1.0, 1.0, 3.0, 9.0)]
    law = fit(rows, CURRENT).eigenvalue
    assert law.scale == pytest.approx(5) and law.exponents["lambda_ratio"] == -0.4


def test_without_ratios_the_law_of_the_eigenvalue_stays():
    assert fit([observed(1.0), observed(2.0)], CURRENT).eigenvalue == CURRENT.eigenvalue


def test_other_sweeps_give_another_version():
    one, other = fit([observed(1.0), observed(2.0)], CURRENT), fit([observed(1.0), observed(3.0)], CURRENT)
    assert len({CURRENT.version, one.version, other.version}) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([observed(1.0)], "at least 2 settings"),
        ([observed(1.0), observed(1.0, lr_stability=None)], "found 1"),
        ([observed(1.0), observed(-1.0)], "positive"),
    ],
)
def test_what_cannot_be_fitted_is_refused(rows, message):
    with pytest.raises(RequestError, match=message):
        fit(rows, CURRENT)
