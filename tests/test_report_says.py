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
