"""What a report says of costs, how to make results again, and of sweeps that failed."""

import pytest
from report_files import first_light, written

from hessian_lr.report import write_report


def part_of(tmp_path, *documents):
    files = [written(tmp_path / f"{place}.json", document) for place, document in enumerate(documents)]
    (part,) = write_report(files, tmp_path / "report.html")
    return part


def section(part, title):
    (found,) = [one for one in part.sections if one.title == title]
    return found


@pytest.mark.parametrize(("predictor", "told"), [("eigenvalue", True), ("adam", True), ("combined", False)])
def test_the_cost_of_measuring_for_all_predictors_is_told_as_that(tmp_path, predictor, told):
    document = first_light()
    for row in document["results"]:
        row["predictor"] = predictor
    (table,) = section(part_of(tmp_path, document), "Cost against the sweep it replaces").tables
    assert ("the cost of the prediction is that of all" in table.caption) == told


def test_a_prediction_whose_sweep_failed_is_still_recommended(tmp_path):
    document = first_light()
    (row, *_) = document["results"]
    nothing = dict.fromkeys(("best_lr", "best_loss", "band_low", "band_high", "factor_error", "regret"))
    lost = {"runs": [], "status": "failed", "censored": True, "inside_band": None, "sweep_seconds": None}
    document["results"] = [row | nothing | lost | {"predicted_lr": 2e-3, "predicted_low": 1e-3}]
    said = part_of(tmp_path, document).advice.sentence.striptags()
    assert said.startswith(f"Start {row['method']} at 2.0e-3 (1.0e-3 "), said
