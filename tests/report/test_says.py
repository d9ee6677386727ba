"""What a report says of costs, how to make results again, and of sweeps that failed."""

import shlex
from dataclasses import replace

import pytest
from report_files import SETTING, first_light, predict_document, predict_row, spectrum_document, written

from hessian_lr.cli import main
from hessian_lr.errors import RequestError
from hessian_lr.predict import load_calibration
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


@pytest.mark.parametrize(
    ("told", "gradients"), [({}, "60"), ({"samples": 3}, "45"), ({"samples": None}, "60")]
)
def test_the_cost_of_a_prediction_is_of_the_rows_it_was_measured_on(tmp_path, told, gradients):
    """15 times the sample; 4 rows were asked for."""
    document = predict_document(predict_row(**told))
    (table,) = section(part_of(tmp_path, document), "Cost against the sweep it replaces").tables
    assert table.rows[0][table.columns.index("prediction: gradients")] == gradients


def test_a_prediction_whose_sweep_failed_is_still_recommended(tmp_path):
    document = first_light()
    (row, *_) = document["results"]
    nothing = dict.fromkeys(("best_lr", "best_loss", "band_low", "band_high", "factor_error", "regret"))
    lost = {"runs": [], "status": "failed", "censored": True, "inside_band": None, "sweep_seconds": None}
    document["results"] = [row | nothing | lost | {"predicted_lr": 2e-3, "predicted_low": 1e-3}]
    said = part_of(tmp_path, document).advice.sentence.striptags()
    assert said.startswith(f"Start {row['method']} at 2.0e-3 (1.0e-3 "), said


@pytest.mark.parametrize(
    ("asked", "runs"), [({}, "5–12"), ({"seeds": [0, 1]}, "10–24"), ({"lrs": [0.1, 1], "seeds": [0, 1]}, "4")]
)
def test_the_runs_of_a_sweep_that_was_not_made_are_those_that_were_asked_for(tmp_path, asked, runs):
    document = first_light() | asked
    nothing = dict.fromkeys(("best_lr", "best_loss", "band_low", "band_high", "sweep_seconds"))
    document["results"] = [document["results"][0] | nothing | {"runs": [], "status": "failed"}]
    (table,) = section(part_of(tmp_path, document), "Cost against the sweep it replaces").tables
    assert table.rows[0][table.columns.index("sweep: runs")] == runs


def test_no_prediction_is_judged_by_a_sweep_whose_best_is_at_its_edge(tmp_path):
    document = first_light()
    document["results"] = [document["results"][0] | {"censored": True, "regret": 0.57}]
    part = part_of(tmp_path, document)
    (rates,) = section(part, "Learning rates").tables
    assert rates.rows[0][-2:] == ["–", "–"]
    assert "57%" not in str(part) and "given up" not in str(part.advice)


def test_the_one_learning_rate_of_a_sweep_is_neither_its_smallest_nor_its_largest(tmp_path):
    document = first_light()
    (row, *_) = document["results"]
    run = min(row["runs"], key=lambda one: one["final_loss"])
    found = {"best_lr": run["lr"], "band_low": None, "band_high": None, "censored": True, "runs": [run]}
    document["results"] = [row | found]
    assert ", the only one of its sweep, and" in part_of(tmp_path, document).advice.sentence.striptags()


@pytest.mark.parametrize("censored", [False, True])
def test_the_picture_of_eigenvalues_is_explained_as_it_is_drawn(tmp_path, censored):
    """λ's bar holds the sampling error, and no line goes through sweeps whose best is at an edge."""
    document = first_light()
    document["results"] = [document["results"][0] | {"censored": censored}]
    (drawing,) = section(part_of(tmp_path, document), "Eigenvalue against best learning rate").drawings
    assert "further where the sampling error reaches further" in drawing.caption
    assert "an arrow is an end that is not known, or lies beyond the picture" in drawing.caption
    assert ("dashed line" in drawing.caption) == ("classical theory" in str(drawing)) == (not censored)


def again(part):
    lines = section(part, "How to make these results again").code
    return [shlex.split(line.replace("\\\n", " "))[1:] for line in lines]


def test_the_command_of_a_moved_rate_gives_the_same_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    replace(load_calibration(), version="mine").write("mine.json")
    (tmp_path / "swept").mkdir()
    written(tmp_path / "swept" / "validate.json", first_light())
    asked = ["--rank", "8", "--from", "swept", "--calibration", "mine.json"]
    assert main(["predict", *asked, "--json", "p.json", "--quiet"]) == 0
    first = (tmp_path / "p.json").read_bytes()
    (part,) = write_report(["p.json"], "report.html")
    (line,) = again(part)
    (tmp_path / "p.json").unlink()
    assert main(line) == 0
    assert (tmp_path / "p.json").read_bytes() == first and b'"calibration": "mine"' in first


@pytest.mark.parametrize("predictor", ["transfer", "none"])
def test_no_command_asks_for_a_predictor_that_there_is_not(tmp_path, predictor):
    # Earlier versions took --fast beside --from, and left it at that.
    (line,) = again(part_of(tmp_path, predict_document(predict_row(predictor=predictor, fast=True))))
    assert not {"--predictor", "--fast", predictor} & set(line)


def test_methods_that_were_added_with_other_constants_have_a_command_of_their_own(tmp_path):
    document = first_light()
    for place, row in enumerate(document["results"]):
        row["calibration_file"] = [None, "mine.json"][place % 2]
    one, other = again(part_of(tmp_path, document))
    names = [row["method"] for row in document["results"]]
    assert [word for word in one if word in names] == names[::2] and "--calibration" not in one
    assert [word for word in other if word in names] == names[1::2]
    assert other[other.index("--calibration") + 1] == "mine.json"


def test_an_earlier_version_called_the_sources_from(tmp_path):
    row = predict_row(predictor="transfer", **{"from": ["swept"], "later": {"a": 1}})
    (line,) = again(part_of(tmp_path, predict_document(row)))
    assert line[line.index("--from") + 1] == "swept" and "--predictor" not in line


@pytest.mark.parametrize(
    ("field", "value"), [("sources", "a"), ("sources", [3]), ("calibration_file", ["a"])]
)
def test_files_that_are_no_names_are_refused(tmp_path, field, value):
    with pytest.raises(RequestError, match=rf"{field} is .* where"):
        part_of(tmp_path, predict_document(predict_row(**{field: value})))


def test_folders_of_one_name_are_told_apart_by_no_more_of_their_paths_than_it_takes(tmp_path):
    folders = [tmp_path / "one" / "o", tmp_path / "two" / "o", tmp_path / "two" / "other"]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        written(folder / "validate.json", of_seed(first_light(), seed))
    (part,) = write_report(folders, tmp_path / "report.html")
    names = ["one/o", "two/o", "other"]
    assert part.advice.sentence.striptags().startswith("Train lora (one/o) at ")
    assert "lora (two/o) at " in str(part.advice.reasons)
    (rates,) = section(part, "Learning rates").tables
    assert rates.columns[1] == "from" and {row[1] for row in rates.rows} == set(names)
    (versions,) = section(part, "Versions").tables
    assert [row[0] for row in versions.rows] == names


def of_seed(document, seed):
    for row in document["results"]:
        row["runs"] = [run | {"seed": seed} for run in row["runs"]]
    return document


def test_a_sweep_that_is_told_twice_counts_once_with_all_of_its_runs(tmp_path):
    """`sweep` in the folder of `validate` writes what is there already, and what came after, once more."""
    before, after, bare = first_light(), first_light(), first_light()
    for document in (before, after, bare):
        document["results"] = document["results"][:2]
    for row in before["results"]:
        row["runs"] = row["runs"][:-1]
    for row in bare["results"]:
        row |= {"lambda_max": None, "lr_stability": None}
    part = part_of(tmp_path, before, after)
    assert "between 5 short runs" in part.advice.sentence.striptags()
    assert any(" of 2 methods" in reason for reason in part.advice.reasons)
    (rates,) = section(part, "Learning rates").tables
    assert [row[0] for row in rates.rows] == ["lora", "rslora"] and rates.columns[1] == "predicted"
    told = "lora of 0.json is that of lora of 1.json, and counts once"
    assert told in section(part, "Notes").lines
    # What has a curvature and what has more runs both tell something.
    (rates,) = section(part_of(tmp_path, before, bare), "Learning rates").tables
    assert len(rates.rows) == 4


def test_a_sweep_without_runs_is_left_out_where_its_folder_has_other_results(tmp_path):
    """`sweep --limit 0` writes one."""
    empty = {"schema": 1, "file": "two.yaml", "varying": [], "results": [{"runs": []}], "notes": []}
    written(tmp_path / "sweep.json", empty)
    none = "none of this sweep's runs has been made yet"
    with pytest.raises(RequestError, match=f"sweep.json: {none}"):
        write_report([tmp_path], tmp_path / "report.html")
    written(tmp_path / "validate.json", first_light())
    (part,) = write_report([tmp_path], tmp_path / "report.html")
    assert f"sweep.json beside validate.json was left out: {none}" in section(part, "Notes").lines
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other" / "sweep.json", empty)
    with pytest.raises(RequestError, match=none):
        write_report([tmp_path, other], tmp_path / "report.html")


def measured(path, data, loss):
    path.parent.mkdir()
    document = first_light() | {"data_digest": data, "model_fingerprint": "m"}
    document["results"] = document["results"][:1]
    document["results"][0]["best_loss"] = loss
    return written(path, document).parent


def test_results_on_other_data_of_the_same_name_are_not_compared(tmp_path):
    one = measured(tmp_path / "a" / "validate.json", "d1", 1.25)
    two = measured(tmp_path / "b" / "validate.json", "d2", 1.5)
    again = measured(tmp_path / "c" / "validate.json", "d2", 1.5)
    parts = write_report([one, two, again], tmp_path / "r.html")
    assert [part.subtitle.split("adamw, ")[1] for part in parts] == ["data d1, from a", "data d2, from b, c"]
    assert "1.250" in parts[0].advice.reasons[0] and "1.500" not in str(parts[0].advice)
    # What does not tell its data goes where there is no choice, and nowhere where there is one.
    told = written(tmp_path / "p.json", predict_document(predict_row("pissa")))
    seen = written(tmp_path / "s.json", spectrum_document(setting=SETTING))
    (part,) = write_report([told, two, seen], tmp_path / "r.html")
    (rates,) = section(part, "Learning rates").tables
    assert [row[1] for row in rates.rows] == ["b", "p.json"]
    parts = write_report([one, two, told, seen], tmp_path / "r.html")
    assert [part.subtitle.partition("from ")[2] for part in parts] == ["a", "b", "p.json", ""]


def test_gradient_descent_has_no_prediction_that_failed_or_took_time(tmp_path):
    document = first_light()
    document["setting"] |= {"optimizer": "sgd"}
    nothing = dict.fromkeys(("predicted_lr", "predicted_low", "predicted_high", "factor_error", "regret"))
    document["results"] = [row | nothing | {"predictor": None} for row in document["results"]]
    part = part_of(tmp_path, document)
    (rates,) = section(part, "Learning rates").tables
    assert {row[1] for row in rates.rows} == {"–"}
    (setting,) = section(part, "Setting").tables
    assert dict(setting.rows)["predictor"] == "–"
    assert dict(setting.rows)["fields"] == "found by their usual names"
    assert "shaded strip" not in section(part, "Sweeps").drawings[0].caption
    said = str(part)
    assert "the sweeps they are to replace" not in said and "hessian-lr predict" not in said


def test_a_spectrum_under_gradient_descent_points_to_no_prediction(tmp_path):
    part = part_of(tmp_path, spectrum_document(setting=replace(SETTING, optimizer="sgd")))
    assert part.advice.reasons == ["`hessian-lr validate` on the same setting finds one."]
    assert "hessian-lr predict" not in str(part)
