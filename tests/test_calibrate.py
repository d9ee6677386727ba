"""What `calibrate` learns from the rows of `validate`."""

from pathlib import Path

import pytest

from hessian_lr.score import Score
from hessian_lr.validated import Validated, observation, observations

SETTING = {
    "model": "m",
    "data": "d",
    "rank": 2,
    "alpha": 2.0,
    "batch_size": 4,
    "steps": 8,
    "seed": 0,
    "samples": 2,
}
MEASURED = {"lr_stability": 1e-2, "lr_critical_start": 2e-2, "lr_eigenvalue": 3e-2, "lr_sharpness": 4e-2}


def validated(method="lora", best_lr=1e-3, folder="runs", **changed):
    scored = Score(best_lr, 1.0, None, None, False, None, None, None, None, None, None)
    return Validated(Path(folder, "validate.json"), SETTING, {"method": method} | MEASURED | changed, scored)


@pytest.mark.parametrize(
    ("method", "known"), [("lora", (3e-2, 4e-2)), ("lora+", (None, None)), ("loft", (None, None))]
)
def test_lambda_teaches_nothing_where_the_method_has_an_optimizer_of_its_own(method, known):
    learned = observation(validated(method)).quantities
    assert (learned.lr_eigenvalue, learned.lr_sharpness) == known
    assert (learned.lr_stability, learned.lr_critical_start, learned.samples) == (1e-2, 2e-2, 2)


@pytest.mark.parametrize(("row", "known"), [({}, 2), ({"samples": 1}, 1)])
def test_the_rows_measured_count_where_they_are_told(row, known):
    assert observation(validated(**row)).quantities.samples == known


def test_a_copied_setting_counts_once_and_is_told():
    rows = [
        validated(),
        validated(folder="copy"),
        validated("pissa"),
        validated(best_lr=2e-3, folder="other"),
    ]
    learned, notes = observations(rows)
    assert learned == [observation(rows[place]) for place in (0, 2, 3)]
    (note,) = notes
    assert note.startswith("lora of copy: ") and "is that of lora of runs: " in note
