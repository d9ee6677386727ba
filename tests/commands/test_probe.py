"""predict and validate with short runs: what they write, and that a later call finds the runs."""

import json
from dataclasses import replace

import pytest
from command_line import PREDICT_KEYS, run_json

from hessian_lr.cli import main
from hessian_lr.predict import load_calibration
from hessian_lr.sweep import engine
from hessian_lr.sweep.plan import MAX_POINTS

pytestmark = pytest.mark.usefixtures("one_thread")

PROBE = ("--predictor", "probe", "--steps", "60")


def test_predict_tells_the_short_runs_beside_the_prediction_and_leaves_no_file(
    capsys, options, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, found = run_json(capsys, "predict", *options, *PROBE)
    (row,) = found["results"]
    assert status == 0 and row.keys() >= PREDICT_KEYS and row["predictor"] == "probe"
    assert row["lambda_preconditioned"] > 0 and row["lambda_max"] is None, "no more than the law takes"
    assert row["probe"]["steps"] == 6
    assert row["probe"]["lr"] == row["lr_probe"] and 3 <= len(row["probe"]["lrs"]) <= MAX_POINTS
    law = load_calibration().probe
    joined = law(lr_probe=row["lr_probe"], lr_stability=row["lr_stability"])
    assert row["lr"] == pytest.approx(joined, rel=1e-9)
    assert list(tmp_path.iterdir()) == []


def test_runs_kept_beside_the_checkpoints_are_not_trained_again(capsys, options, tmp_path, monkeypatch):
    line = ("predict", *options, *PROBE, "--checkpoint", tmp_path / "kept")
    _, first = run_json(capsys, *line)
    monkeypatch.setattr(engine, "train_once", None)
    status, again = run_json(capsys, *line)
    assert status == 0 and again["results"][0]["probe"] == first["results"][0]["probe"]


@pytest.mark.usefixtures("undrawn")
def test_validate_scores_it_and_calibrate_learns_from_it(capsys, options, tmp_path):
    out = tmp_path / "runs"
    rates = ("--lrs", "0.003,0.03,0.3", "--seeds", "0")
    status, found = run_json(capsys, "validate", *options, *PROBE, *rates, "--out", out)
    (row,) = found["results"]
    assert status == 0 and row["predictor"] == "probe"
    assert row["predictions"]["probe"]["lr"] == row["predicted_lr"]
    assert row["predictions"]["combined"]["lr"] != row["predicted_lr"]
    assert {run["steps"] for run in row["runs"]} == {60}, "the short runs are no part of the sweep"
    assert main(["calibrate", str(out), "--out", str(tmp_path / "own.json"), "--quiet"]) == 0
    own = json.loads((tmp_path / "own.json").read_text())
    assert own["probe"]["scale"] != load_calibration().probe.scale


def test_a_run_too_short_is_refused_before_anything_is_loaded(capsys, options):
    for command in ("predict", "validate"):
        assert main([command, *options, "--predictor", "probe", "--steps", "59"]) == 2
        assert "59 steps are too few" in capsys.readouterr().err


def test_constants_without_a_law_for_short_runs_are_refused_before_anything_is_loaded(
    capsys, options, tmp_path
):
    replace(load_calibration(), probe=None, version="old").write(tmp_path / "old.json")
    for command in ("predict", "validate"):
        line = [command, *options, *PROBE, "--calibration", str(tmp_path / "old.json")]
        assert main(line) == 2
        assert "the constants 'old' have no law for short runs" in capsys.readouterr().err
