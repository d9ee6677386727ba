"""`hessian-lr sweep --predictor`: settings measured beside their runs, and what reads the folder then.

Runs are not trained here but told: each setting has a best learning rate of its own.
"""

import csv
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from tiny_text import save, sums, tiny_llama, write_rows

from hessian_lr.alignment import align
from hessian_lr.cli import main
from hessian_lr.errors import HessianLRError
from hessian_lr.predict.prediction import Prediction
from hessian_lr.report.documents import read_documents
from hessian_lr.sweep import RunResult, engine, run_key
from hessian_lr.validated import read_validated

pytestmark = pytest.mark.usefixtures("one_thread")

LRS = [1e-3, 1e-2, 1e-1]
SETTING = {"steps": 4, "device": "cpu", "dtype": "float32", "samples": 2, "batch_size": 2}
GRID = {"method": ["lora", "pissa"], "rank": [2, 4], "lr": LRS, "seed": [3, 1]}


def command(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module", autouse=True)
def told():
    def train(setting, lr, loaded, data, _):
        best = 1e-2 * setting.rank**0.3 / (2 if setting.method == "pissa" else 1)
        loss = 1.0 + math.log10(lr / best) ** 2 / 8
        key = run_key(setting, lr, data.digest, loaded.fingerprint)
        return RunResult(key, setting, lr, 2.0, loss, setting.steps, False, 1.0, 10)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train_once", train)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    save(tiny_llama(initializer_range=0.2), root / "model")
    write_rows(root / "rows.jsonl", sums(24))
    names = {"model": str(root / "model"), "data": str(root / "rows.jsonl")}
    (root / "grid.yaml").write_text(yaml.safe_dump(names | SETTING | GRID))
    return root


@pytest.fixture(scope="module")
def predicted(folder):
    """The grid, trained and predicted."""
    out = folder / "predicted"
    words = ("sweep", folder / "grid.yaml", "--out", out, "--quiet")
    assert command(*words, "--predictor", "combined") == 0
    return out


@pytest.fixture
def no_measuring(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a setting was measured again")

    monkeypatch.setattr("hessian_lr.study.predicting.predict_learning_rate", refuse)


def rows(out):
    return json.loads((out / "sweep.json").read_text())["results"]


def test_each_setting_has_the_numbers_that_validate_gives_it(folder, predicted, tmp_path):
    """By the other command, in a folder of its own."""
    options = [word for name, value in SETTING.items() for word in (f"--{name.replace('_', '-')}", value)]
    options += ["--model", folder / "model", "--data", folder / "rows.jsonl", "--rank", 4, "--seed", 1]
    options += ["--method", "pissa", "--lrs", ",".join(map(str, LRS)), "--seeds", "1,3", "--out", tmp_path]
    assert command("validate", *options, "--quiet") == 0
    (theirs,) = json.loads((tmp_path / "validate.json").read_text())["results"]
    (ours,) = (row for row in rows(predicted) if row["label"] == "pissa, rank 4")
    assert ours["prediction_status"] == theirs["status"] and ours["lambda_max"] > 0
    of_a_clock = {"seconds", "sweep_seconds", "peak_rss_bytes", "runs", "status", "method"}
    differing = [name for name in theirs.keys() - of_a_clock if ours[name] != theirs[name]]
    assert not differing


def test_the_table_has_curvature_and_prediction_beside_each_run(predicted):
    found = {row["label"]: row for row in rows(predicted)}
    with open(predicted / "sweep.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == 4 * len(LRS) * 2
    for line in lines:
        row = found[f"{line['method']}, rank {line['rank']}"]
        for name in ("lambda_max", "lambda_preconditioned", "predicted_lr", "predicted_low"):
            assert float(line[name]) == row[name] > 0
        assert row["factor_error"] == pytest.approx(
            10 ** abs(math.log10(row["predicted_lr"] / row["best_lr"]))
        )


def test_every_field_is_explained(predicted):
    page = Path(__file__).parents[2] / "docs" / "results.md"
    sections = page.read_text(encoding="utf-8").split("\n## ")
    # A row's fields are listed where its own command is, be it only as explained above.
    own = [one for one in sections if not one.startswith(("predict", "spectrum", "The others"))]
    explained = set(re.findall(r"`([a-z_0-9]+)`", "".join(own)))
    whole = json.loads((predicted / "sweep.json").read_text())
    assert not {*whole, *whole["results"][0], *whole["results"][0]["runs"][0]} - explained


def test_align_calibrate_report_and_transfer_read_the_folder(capsys, folder, predicted, tmp_path):
    whole = rows(predicted)
    pairs = [(row["lambda_max"], row["best_lr"]) for row in whole if not row["censored"]]
    assert len(pairs) > 2
    assert command("align", predicted, "--json", tmp_path / "a.json") == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["alignment"] == align(*zip(*pairs, strict=True)).to_dict()

    assert command("calibrate", predicted, "--out", tmp_path / "c.json", "--json", tmp_path / "d.json") == 0
    learned = json.loads((tmp_path / "d.json").read_text())["observations"]
    assert [one["best_lr"] for one in learned] == [best for _, best in pairs]
    assert {one["quantities"]["steps"] for one in learned} == {4}

    parts = read_documents([predicted])
    assert [[entry.method for entry in part.entries] for part in parts] == [["lora", "pissa"]] * 2
    assert [part.entries[0].setting.rank for part in parts] == [2, 4]
    capsys.readouterr()
    assert command("report", predicted, "--out", tmp_path / "r.html") == 0
    said = capsys.readouterr().out
    assert "rank 2, alpha 2, 4 steps" in said and "rank 4, alpha 4, 4 steps" in said
    page = (tmp_path / "r.html").read_text()
    assert f"--out {predicted.name} --predictor combined" in page

    options = ("--model", folder / "model", "--data", folder / "rows.jsonl", "--steps", 4, "--batch-size", 2)
    words = ("predict", *options, "--rank", 8, "--from", predicted, "--json", tmp_path / "p.json")
    assert command(*words) == 0
    (row,) = json.loads((tmp_path / "p.json").read_text())["results"]
    assert row["predictor"] == "transfer" and row["lr"] > 0


def test_nothing_is_measured_twice_and_a_plain_call_says_what_it_leaves_out(
    capsys, folder, predicted, no_measuring
):
    words = ("sweep", folder / "grid.yaml", "--out", predicted, "--limit", 0)
    before = rows(predicted)
    assert command(*words) == 0
    assert "predictor combined has them there again" in capsys.readouterr().err
    assert {row["lambda_max"] for row in rows(predicted)} == {None}
    for reader in ("align", "calibrate"):
        assert command(reader, predicted, *(("--out", folder / "no.json") * (reader == "calibrate"))) == 2
        assert "has a curvature; a sweep's folder gets it" in capsys.readouterr().err
    best = sorted(one.row.best_lr for one in read_validated([predicted]))
    assert best == sorted(row["best_lr"] for row in before), "the runs are there as they were"

    assert command(*words, "--predictor", "combined") == 0
    said = capsys.readouterr()
    assert "4 settings to predict" in " ".join(said.err.split()) and "predicted" in said.out
    assert rows(predicted) == before


def test_shares_measure_their_own_settings_and_the_whole_takes_them(
    capsys, folder, predicted, tmp_path, monkeypatch
):
    """Each share, in a folder of its own, fills half of the table; `merge` brings the halves together."""
    words = ("sweep", folder / "grid.yaml", "--limit", 0, "--predictor", "adam", "--quiet")
    for share, measured in (
        ("1/2", ["lora, rank 2", "pissa, rank 2"]),
        ("2/2", ["lora, rank 4", "pissa, rank 4"]),
    ):
        out = tmp_path / share[0]
        assert command(*words, "--shard", share, "--out", out) == 0
        assert [row["label"] for row in rows(out) if row["lambda_max"]] == measured
    both = tmp_path / "both"
    assert command("merge", folder / "grid.yaml", tmp_path / "1", tmp_path / "2", "--out", both) == 1
    assert "4 measurements brought along" in capsys.readouterr().err
    monkeypatch.setattr("hessian_lr.study.predicting.predict_learning_rate", None)
    assert command(*words, "--out", both) == 0
    assert [row["predicted_lr"] for row in rows(both)] == [
        row["predictions"]["adam"]["lr"] for row in rows(predicted)
    ]


@pytest.mark.parametrize("raised", [False, True])
def test_a_prediction_that_fails_is_told_and_its_runs_stay(capsys, folder, tmp_path, monkeypatch, raised):
    def fails(*_, calibration, **__):
        if raised:
            raise HessianLRError("the loss is not finite")
        return Prediction.failed("combined", calibration.version, "the loss is not finite")

    monkeypatch.setattr("hessian_lr.study.predicting.predict_learning_rate", fails)
    names = {"model": str(folder / "model"), "data": str(folder / "rows.jsonl"), "lr": LRS}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(names | SETTING))
    words = ("sweep", tmp_path / "one.yaml", "--out", tmp_path / "out", "--predictor", "combined")
    assert command(*words) == 1
    assert "lora: no prediction: the loss is not finite" in capsys.readouterr().err
    (row,) = rows(tmp_path / "out")
    assert (row["status"], row["prediction_status"]) == ("complete", "failed") and len(row["runs"]) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--predictor", "adma"], "unknown predictor 'adma'"),
        (["--predictor", "probe"], "steps"),
        (["--calibration", "some.json"], "name a --predictor"),
    ],
)
def test_what_cannot_be_predicted_is_refused_before_any_run(capsys, folder, tmp_path, words, told):
    out = tmp_path / "out"
    assert command("sweep", folder / "grid.yaml", "--out", out, *words) == 2
    assert told in capsys.readouterr().err and not Path(out).exists()
