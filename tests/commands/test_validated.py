"""validate, and the commands that live on what it wrote."""

import json
import math
import shutil
from dataclasses import fields, replace

import made_rows
import pytest
from command_line import SETTING_KEYS, run_json

from hessian_lr.cli import main
from hessian_lr.errors import HessianLRError, NonFiniteError
from hessian_lr.predict import load_calibration
from hessian_lr.predict.law import PowerLaw
from hessian_lr.rows import RunRow
from hessian_lr.sweep import engine

pytestmark = pytest.mark.usefixtures("one_thread")

VALIDATE_KEYS = {
    *("method", "runs", "best_lr", "best_loss", "band_low", "band_high", "censored", "predicted_lr"),
    *("predicted_low", "predicted_high", "factor_error", "regret", "inside_band"),
}


RUN_KEYS = {field.name for field in fields(RunRow)}


AGAIN = ("--method", "lora", "--method", "pissa", "--lrs", "0.03,0.3,3", "--seeds", "0,1")


@pytest.fixture(scope="module")
def validated(folder):
    """A folder that validate wrote: two methods, three learning rates, two seeds."""
    out = folder / "validated"
    status = main(
        [
            *("validate", "--model", str(folder / "model"), "--data", str(folder / "rows.jsonl")),
            *("--rank", "2", "--steps", "8", "--samples", "8", "--device", "cpu", "--dtype", "float32"),
            *AGAIN,
            *("--out", str(out), "--quiet"),
        ]
    )
    assert status == 0
    return out


def test_validate_writes_the_promised_keys_and_figures(validated):
    found = json.loads((validated / "validate.json").read_text())
    assert found["schema"] == 1 and found["setting"].keys() == SETTING_KEYS
    for row in found["results"]:
        assert row.keys() >= VALIDATE_KEYS
        assert [(run["lr"], run["seed"]) for run in row["runs"]] == [
            (lr, seed) for lr in (0.03, 0.3, 3.0) for seed in (0, 1)
        ]
        assert all(run.keys() == RUN_KEYS for run in row["runs"])
        # What `calibrate` and `align` live on.
        assert (
            row["lambda_max"] > 0 and row["lr_stability"] > 0 and row["predictions"]["eigenvalue"]["lr"] > 0
        )
        assert 0 < row["lr_sharpness"] < math.inf
        assert "probe" not in row["predictions"] and row["lr_probe"] is None, "no short runs were asked for"
    for name in ("sweep.png", "sweep.svg", "eigenvalue.png", "eigenvalue.svg"):
        assert (validated / name).stat().st_size > 1000


def test_a_validation_that_is_done_measures_and_trains_nothing_again(capsys, validated, options, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("this was done already")

    before = (validated / "validate.json").read_bytes()
    monkeypatch.setattr(engine, "train_once", refuse)
    monkeypatch.setattr("hessian_lr.study.predicting.predict_learning_rate", refuse)
    status, found = run_json(capsys, "validate", *options, *AGAIN, "--out", validated)
    assert status == 0
    assert (validated / "validate.json").read_bytes() == before
    # The file has a checksum besides.
    assert found.items() <= json.loads(before).items()


@pytest.fixture
def without_pissas_runs(validated, tmp_path):
    """A copy of the validated folder from which the runs of pissa were taken."""
    out = shutil.copytree(validated, tmp_path / "out")
    (out / "validate.json").unlink()
    for path in out.glob("runs/*.json"):
        if json.loads(path.read_text())["setting"]["method"] == "pissa":
            path.unlink()
    return out


def test_a_failed_sweep_keeps_the_other_methods_and_the_prediction(
    capsys, without_pissas_runs, options, monkeypatch
):
    def fail(*_arguments):
        raise HessianLRError("out of memory")

    monkeypatch.setattr(engine, "train_once", fail)
    status, found = run_json(capsys, "validate", *options, *AGAIN, "--out", without_pissas_runs)
    assert status == 1
    lora, pissa = found["results"]
    assert lora["status"] != "failed" and len(lora["runs"]) == 6
    assert pissa["status"] == "failed" and pissa["runs"] == [] and pissa["best_lr"] is None
    assert pissa["predicted_lr"] > 0 and "sweep failed: out of memory" in pissa["notes"]
    assert pissa.keys() == lora.keys()


def test_a_failed_eigenvalue_is_explained_but_does_not_fail_the_method(
    capsys, validated, options, monkeypatch, tmp_path
):
    def fail(*_arguments, **_options):
        raise NonFiniteError("a product is not finite")

    out = shutil.copytree(validated, tmp_path / "out")
    for path in out.glob("prediction-*.json"):
        path.unlink()
    monkeypatch.setattr("hessian_lr.predict.predictor.by_lanczos", fail)
    status, found = run_json(capsys, "validate", *options, *AGAIN, "--out", out)
    assert status == 0
    for row in found["results"]:
        assert row["lambda_max"] is None and row["predicted_lr"] > 0 and row["best_loss"] > 0
        assert "λ at initialization: a product is not finite" in row["notes"]
        assert any("law 'adam'" in note for note in row["notes"])


def test_ctrl_c_keeps_what_is_finished_and_says_so(capsys, without_pissas_runs, options, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "train_once", interrupt)
    assert main(["validate", *options, *AGAIN, "--out", str(without_pissas_runs), "--quiet"]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert str(without_pissas_runs) in line and "goes on" in line
    kept = json.loads((without_pissas_runs / "validate.json").read_text())
    assert [row["method"] for row in kept["results"]] == ["lora"]


def test_a_damaged_measurement_is_named_and_made_again(capsys, validated, options):
    (kept,) = (
        path for path in validated.glob("prediction-*.json") if '"method": "pissa"' in path.read_text()
    )
    whole = json.loads(kept.read_text())
    kept.write_text(kept.read_text()[:100])
    arguments = ("--method", "pissa", "--lrs", "0.03,0.3,3", "--seeds", "0,1", "--out", validated)
    _, found = run_json(capsys, "validate", *options, *arguments)
    (row,) = found["results"]
    assert any(kept.name in note and "damaged" in note for note in row["notes"])
    assert row["lambda_max"] == pytest.approx(whole["prediction"]["curvature"]["lambda_max"])
    assert json.loads(kept.read_text())["identity"] == whole["identity"]


def test_a_swept_setting_predicts_another_without_loading_the_model(capsys, validated, options, monkeypatch):
    known = json.loads((validated / "validate.json").read_text())["results"]
    settled = [row for row in known if row["best_lr"] and not row["censored"]]
    assert settled

    def refuse(*_arguments, **_options):
        raise AssertionError("nothing is measured")

    monkeypatch.setattr("hessian_lr.models.load", refuse)
    name = settled[0]["method"]
    _, same = run_json(capsys, "predict", *options, "--method", name, "--from", validated)
    status, more = run_json(
        capsys, "predict", *options, "--method", name, "--steps", "99", "--from", validated
    )
    assert status == 0
    (row,), (longer,) = same["results"], more["results"]
    assert row["predictor"] == "transfer" and row["lambda_max"] is None
    assert row["lr"] == pytest.approx(settled[0]["best_lr"]) and row["lr_low"] < row["lr"] < row["lr_high"]
    exponent = load_calibration().transfer.exponents["steps"]
    steps = more["setting"]["steps"] / same["setting"]["steps"]
    assert longer["lr"] == pytest.approx(row["lr"] * steps**exponent)


def test_align_reads_folders_and_draws(capsys, validated, tmp_path):
    status, found = run_json(capsys, "align", validated, "--out", tmp_path / "picture.svg")
    assert status == 0
    assert found["alignment"]["points"] == sum(not point["censored"] for point in found["points"])
    assert (tmp_path / "picture.svg").exists() and (tmp_path / "picture.png").exists()


def test_align_counts_a_copied_result_once_and_says_so(capsys, validated, tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        shutil.copy(validated / "validate.json", tmp_path / name)
    folders = [tmp_path / name for name in "abc"]
    _, one = run_json(capsys, "align", validated)
    _, found = run_json(capsys, "align", validated, *folders)
    assert found["points"] == one["points"] and found["alignment"] == one["alignment"]
    assert one["notes"] == [] and len(found["notes"]) == 3 * len(one["points"])
    first = f"lora of {tmp_path / 'a' / 'validate.json'}"
    assert found["notes"][0] == f"{first} is that of lora of {validated / 'validate.json'}, and counts once"


def test_calibrate_hits_the_geometric_mean_and_predict_uses_it(capsys, folder, options, tmp_path):
    """Two settings whose best learning rates are 0.32 and 0.5 of 38/λ_P, no prior: the scale is 0.4."""
    rows = [
        made_rows.scored(method=name, best_lr=lr, censored=edge, lr_stability=1.0).to_dict()
        for name, lr, edge in (("lora", 0.32, False), ("pissa", 0.5, False), ("olora", 9.9, True))
    ]
    setting = {"model": "m", "data": "d", "rank": 2, "alpha": 2.0, "batch_size": 4, "steps": 8, "seed": 0}
    (tmp_path / "validate.json").write_text(json.dumps({"schema": 1, "setting": setting, "results": rows}))
    constants, start = tmp_path / "calibration.json", tmp_path / "start.json"
    law = PowerLaw(1.0, {"lr_stability": 1.0}, {}, 0.3, 5, {})
    replace(load_calibration(), combined=law, adam=law).write(start)
    asked = ("calibrate", tmp_path, "--calibration", start, "--out", constants)
    assert main([*map(str, asked)]) == 0
    assert f"written to {constants}; `predict` and `validate` take it" in capsys.readouterr().err
    status, found = run_json(capsys, *asked)
    assert status == 0 and found["calibration"] == json.loads(constants.read_text())
    law = found["calibration"]["adam"]
    assert law["scale"] == pytest.approx(0.4) and law["settings"] == 2, "a censored best does not count"
    assert "lora, pissa" in law["sources"]["scale"]

    _, predicted = run_json(capsys, "predict", *options, "--calibration", constants)
    (row,) = predicted["results"]
    assert row["lr"] == pytest.approx(0.4 * row["lr_stability"])
    assert row["calibration"] == found["calibration"]["version"]


def test_a_setting_is_known_again_wherever_its_folder_lies(capsys, validated, tmp_path):
    known = json.loads((validated / "validate.json").read_text())
    assert any(row["best_lr"] and not row["censored"] for row in known["results"])
    constants, more = tmp_path / "constants.json", tmp_path / "more.json"
    _, found = run_json(capsys, "calibrate", validated, "--out", constants)
    assert not any("does not tell" in note for note in found["notes"])
    told = {one["identity"] for one in found["observations"]}
    assert set(found["calibration"]["adam"]["fitted_to"]) == told

    copy = shutil.copytree(validated, tmp_path / "elsewhere" / "copy")
    asked = ("--calibration", str(constants), "--out", str(more))
    assert main(["calibrate", str(copy), *asked]) == 2
    assert "would count them twice" in capsys.readouterr().err
    # Another setting in a folder of the same name is another setting.
    other = tmp_path / "other" / validated.name
    other.mkdir(parents=True)
    del known["sha256"]
    known["setting"]["max_length"] -= 1
    known["data_digest"] = "other rows"
    (other / "validate.json").write_text(json.dumps(known))
    assert main(["calibrate", str(other), *asked]) == 0
    # A file of an earlier version has no such list.
    for law in ("combined", "adam", "eigenvalue", "probe"):
        del found["calibration"][law]["fitted_to"]
    constants.write_text(json.dumps(found["calibration"]))
    status, again = run_json(capsys, "calibrate", copy, *asked)
    assert status == 0 and f"{constants} does not tell which settings it comes from" in str(again["notes"])


def test_tables_are_plain_and_fit_80_columns_when_piped(capsys, options, validated):
    again = ("--lrs", "0.03,0.3,3", "--seeds", "0,1", "--out", str(validated))
    assert main(["validate", *options, "--method", "pissa", "--quiet", *again]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "pissa" in said.out and "regret" in said.out
    assert "\x1b" not in said.out and "…\n" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
