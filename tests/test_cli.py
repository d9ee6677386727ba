"""The commands: their JSON, their exit statuses, and what they say about a wrong request."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_text import save, sums, tiny_llama, write_rows

from hessian_lr import cli, session
from hessian_lr.cli import main
from hessian_lr.errors import HessianLRError, NonFiniteError, RequestError
from hessian_lr.predict import load_calibration
from hessian_lr.predict.calibration import PowerLaw
from hessian_lr.predict.start import RTOL
from hessian_lr.sweep import engine

SETTING_KEYS = {
    *("model", "data", "fields", "methods", "rank", "alpha", "target_modules", "optimizer", "batch_size"),
    *("steps", "seed", "samples", "max_length", "device", "dtype"),
}
PREDICT_KEYS = {
    *("method", "status", "lambda_max", "lambda_lower", "lambda_upper", "lambda_min", "residual"),
    *("sampling_error", "matvecs", "gradient_equivalents", "seconds", "peak_rss_bytes"),
    *("lambda_preconditioned", "lr_directional", "lr_critical", "warmup_steps", "lr", "lr_low", "lr_high"),
    *("predictor", "notes"),
}
VALIDATE_KEYS = {
    *("method", "runs", "best_lr", "best_loss", "band_low", "band_high", "censored", "predicted_lr"),
    *("predicted_low", "predicted_high", "factor_error", "regret", "inside_band"),
}
RUN_KEYS = {"lr", "seed", "initial_loss", "final_loss", "steps", "diverged", "seconds"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, one with NaN, one without linear modules to adapt by name, and data."""
    root = tmp_path_factory.mktemp("cli")
    model = tiny_llama(initializer_range=0.2)
    save(model, root / "model")
    with torch.no_grad():
        next(model.parameters())[3, 3] = math.nan
    save(model, root / "nan")
    write_rows(root / "rows.jsonl", sums(8))
    (root / "empty.jsonl").write_text("")
    write_rows(root / "two.jsonl", sums(8)[:2])
    (root / "file").write_text("in the way")
    return root


@pytest.fixture
def options(folder):
    """The options of a tiny setting."""
    return [
        *("--model", str(folder / "model"), "--data", str(folder / "rows.jsonl"), "--rank", "2"),
        *("--steps", "8", "--samples", "8", "--device", "cpu", "--dtype", "float32"),
    ]


def run_json(capsys, *arguments):
    """The JSON that a command writes to standard output, which must hold nothing else."""
    capsys.readouterr()
    status = main([*map(str, arguments), "--json", "-"])
    return status, json.loads(capsys.readouterr().out)


def test_predict_writes_the_promised_keys(capsys, options):
    status, found = run_json(capsys, "predict", *options, "--method", "lora", "--method", "pissa")
    assert status == 0
    assert found["schema"] == 1 and found["setting"].keys() == SETTING_KEYS
    assert found["setting"]["methods"] == ["lora", "pissa"]
    assert [row["method"] for row in found["results"]] == ["lora", "pissa"]
    for row in found["results"]:
        assert row.keys() >= PREDICT_KEYS
        assert row["status"] in ("converged", "budget")
        assert 0 < row["lr_low"] < row["lr"] < row["lr_high"]
        assert row["lambda_max"] > 0 and row["lambda_preconditioned"] > 0, "both are measured"
        assert row["warmup_steps"] == 10 and row["predictor"] == "combined"


def test_the_adam_predictor_measures_no_eigenvalue_at_the_start(capsys, options):
    _, found = run_json(capsys, "predict", *options, "--predictor", "adam")
    (row,) = found["results"]
    assert row["lr"] > 0 and row["lambda_preconditioned"] > 0 and row["lambda_max"] is None


def test_the_eigenvalue_predictor_reports_what_spectrum_measures(capsys, options):
    _, predicted = run_json(capsys, "predict", *options, "--predictor", "eigenvalue")
    # To the same error: a prediction needs no sharper one.
    status, measured = run_json(capsys, "spectrum", *options, "--rtol", str(RTOL))
    (row,), (curvature,) = predicted["results"], measured["results"]
    assert status == 0 and row["lr"] > 0
    assert row["lambda_preconditioned"] is None and row["warmup_steps"] is None
    for name in ("lambda_max", "lambda_lower", "lambda_upper", "lambda_min", "residual", "sampling_error"):
        assert row[name] == curvature[name] is not None


@pytest.mark.parametrize(
    ("line", "word", "completed"), [("pre", 1, "predict"), ("predict --meth", 2, "--method")]
)
def test_a_shell_completes_commands_and_options(line, word, completed):
    asked = {
        "_HESSIAN_LR_COMPLETE": "complete_bash",
        "COMP_WORDS": f"hessian-lr {line}",
        "COMP_CWORD": str(word),
    }
    command = [sys.executable, "-c", "from hessian_lr.cli import main; main([])"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [completed]


def test_spectrum_brackets_plain_lora_only(capsys, options):
    status, found = run_json(
        capsys, "spectrum", *options, "--bracket", "--rtol", "0.01", "--method", "lora", "--method", "olora"
    )
    lora, olora = found["results"]
    assert status == 0 and olora["bracket"] is None
    assert lora["bracket"]["lower"] <= lora["lambda_max"] * 1.01
    assert lora["lambda_max"] <= lora["bracket"]["upper"]
    assert {"matvecs", "gradient_equivalents", "seconds", "peak_rss_bytes"} <= lora.keys()


def test_spectrum_tells_density_and_modules_when_asked(capsys, options):
    status, found = run_json(capsys, "spectrum", *options, "--density", "--per-module")
    (row,) = found["results"]
    assert status == 0 and row["bracket"] is None
    assert row["held_out"] is not None and row["held_out_error"] > 0
    modules = {one["name"]: one["lambda_max"] for one in row["modules"]["modules"]}
    # A block's eigenvalue is a Rayleigh quotient of the whole matrix.
    assert 0 < max(modules.values()) <= row["lambda_upper"]
    nodes = [node for probe in row["density"]["nodes"] for node in probe]
    assert row["lambda_min"] * 1.1 <= min(nodes) <= max(nodes) <= row["lambda_upper"]
    assert main(["spectrum", *options, "--density", "--per-module", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "trace" in shown and "sharpest" in shown and "held out" in shown


def test_spectrum_grows_its_sample(capsys, options):
    status, found = run_json(capsys, "spectrum", *options, "--samples", "auto", "--rtol", "0.1")
    (row,) = found["results"]
    assert status == 0 and found["setting"]["samples"] == "auto"
    assert row["samples"] >= 8
    enough = row["sampling_error"] <= 0.1 * row["lambda_max"]
    assert enough or any("sampling error still exceeds" in note for note in row["notes"])


def test_fast_predictions_take_lambda_from_the_closed_form(capsys, options):
    _, found = run_json(capsys, "predict", *options, "--predictor", "eigenvalue", "--fast")
    _, slow = run_json(capsys, "predict", *options, "--predictor", "eigenvalue")
    (fast,), (exact,) = found["results"], slow["results"]
    assert fast["lambda_max"] == pytest.approx(exact["lambda_max"], rel=0.1)
    assert fast["lambda_lower"] <= exact["lambda_upper"] and exact["lambda_lower"] <= fast["lambda_upper"]
    assert fast["matvecs"] <= 8
    assert any("closed form" in note for note in fast["notes"])


AGAIN = ("--method", "lora", "--method", "pissa", "--lrs", "0.01,0.1,1", "--seeds", "0,1")


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
            (lr, seed) for lr in (0.01, 0.1, 1.0) for seed in (0, 1)
        ]
        assert all(run.keys() == RUN_KEYS for run in row["runs"])
        # What `calibrate` and `align` live on.
        assert (
            row["lambda_max"] > 0 and row["lr_stability"] > 0 and row["predictions"]["eigenvalue"]["lr"] > 0
        )
        assert 0 < row["lr_sharpness"] < math.inf
    for name in ("sweep.png", "sweep.svg", "eigenvalue.png", "eigenvalue.svg"):
        assert (validated / name).stat().st_size > 1000


def test_a_validation_that_is_done_measures_and_trains_nothing_again(capsys, validated, options, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("this was done already")

    before = (validated / "validate.json").read_bytes()
    monkeypatch.setattr(engine, "train_once", refuse)
    monkeypatch.setattr("hessian_lr.validate.predict_learning_rate", refuse)
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
    arguments = ("--method", "pissa", "--lrs", "0.01,0.1,1", "--seeds", "0,1", "--out", validated)
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

    monkeypatch.setattr(session, "load", refuse)
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


def test_calibrate_hits_the_geometric_mean_and_predict_uses_it(capsys, folder, options, tmp_path):
    """Two settings whose best learning rates are 0.32 and 0.5 of 38/λ_P, no prior: the scale is 0.4."""
    fields = ("best_loss", "band_low", "band_high", "predicted_lr", "predicted_low", "predicted_high")
    more = (*fields, "factor_error", "regret", "inside_band", "lr_sharpness")
    rows = [
        dict.fromkeys(more)
        | {"method": name, "best_lr": lr, "censored": edge, "lr_stability": 1.0, "runs": []}
        for name, lr, edge in (("lora", 0.32, False), ("pissa", 0.5, False), ("olora", 9.9, True))
    ]
    setting = {"model": "m", "data": "d", "rank": 2, "alpha": 2.0, "batch_size": 4, "steps": 8, "seed": 0}
    (tmp_path / "validate.json").write_text(json.dumps({"schema": 1, "setting": setting, "results": rows}))
    constants, start = tmp_path / "calibration.json", tmp_path / "start.json"
    law = PowerLaw(1.0, {"lr_stability": 1.0}, {}, 0.3, 5, {})
    replace(load_calibration(), combined=law, adam=law).write(start)
    status, found = run_json(capsys, "calibrate", tmp_path, "--calibration", start, "--out", constants)
    assert status == 0 and found["calibration"] == json.loads(constants.read_text())
    law = found["calibration"]["adam"]
    assert law["scale"] == pytest.approx(0.4) and law["settings"] == 2, "a censored best does not count"
    assert "lora, pissa" in law["sources"]["scale"]

    _, predicted = run_json(capsys, "predict", *options, "--calibration", constants)
    (row,) = predicted["results"]
    assert row["lr"] == pytest.approx(0.4 * row["lr_stability"])
    assert row["calibration"] == found["calibration"]["version"]


def test_list_names_what_the_other_commands_take(capsys):
    status, found = run_json(capsys, "list")
    assert status == 0
    assert {"lora", "pissa"} <= {entry["name"] for entry in found["methods"]}
    assert "math" in {entry["name"] for entry in found["tasks"]}
    assert "smollm2-135m" in {entry["name"] for entry in found["models"]}
    assert main(["list", "tasks"]) == 0
    assert "math" in capsys.readouterr().out


# What is asked for, and what the one line must say; {folder} is the fixture's. A later option wins.
WRONG = {
    "method": (["--method", "pisa"], "unknown method 'pisa'. Did you mean 'pissa'?"),
    "model": (["--model", "smollm2-135"], "Did you mean 'smollm2-135m'?"),
    "task": (["--data", "maths"], "unknown task 'maths'. Did you mean 'math'?"),
    "optimizer": (["--optimizer", "adam"], "unknown optimizer 'adam'. Did you mean 'adamw'?"),
    "device": (["--device", "gpu"], "unknown device 'gpu'"),
    "fields": (["--fields", "promt,response"], "no column 'promt'. Did you mean 'prompt'?"),
    "fields of a task": (["--data", "math", "--fields", "a,b"], "has none"),
    "rank 0": (["--rank", "0"], "rank must be a whole number of at least 1, not 0"),
    "rank not a number": (["--rank", "eight"], "'--rank'"),
    "rank too large": (["--rank", "4000"], "rank 4000 is larger than"),
    "empty data": (["--data", "{folder}/empty.jsonl"], "empty.jsonl has no rows"),
    "too little data": (["--data", "{folder}/two.jsonl"], "at least 2"),
    "no data": (["--data", "{folder}/none.jsonl"], "there is no file"),
    "no such module": (["--target-modules", "qproj"], "qproj"),
    "json": (["--json", "{folder}/file/x.json"], "is a file, not a folder"),
    "json folder": (["--json", "{folder}"], "is a folder"),
    "option": (["--ranks", "3"], "unknown option '--ranks'. Did you mean '--rank'?"),
}
WRONG_FOR = {
    "predictor": ("predict", ["--predictor", "adams"], "Did you mean 'adam'?"),
    "calibration": ("predict", ["--calibration", "{folder}/none.json"], "cannot read"),
    "algorithm": ("spectrum", ["--algorithm", "lanczo"], "Did you mean 'lanczos'?"),
    "operator": ("spectrum", ["--operator", "gauss"], "unknown operator 'gauss'"),
    "samples": ("spectrum", ["--samples", "many"], "--samples takes a whole number or 'auto', not 'many'"),
    "samples auto": ("predict", ["--samples", "auto"], "--samples auto is for `hessian-lr spectrum`"),
    "fast": ("predict", ["--fast"], "--fast is for --predictor eigenvalue"),
    "fast olora": (
        "predict",
        ["--fast", "--predictor", "eigenvalue", "--method", "olora"],
        "--fast is for lora and rslora, whose λ has a closed form; olora needs Lanczos",
    ),
    "rtol": ("spectrum", ["--rtol", "2"], "rtol must lie between 0 and 1"),
    "out": ("validate", ["--out", "{folder}/file/runs"], "is a file, not a folder"),
    "lrs": ("validate", ["--lrs", "1e-4,fast"], "--lrs takes numbers"),
    "negative lr": ("validate", ["--lrs", "-1"], "must be positive"),
    "seeds": ("validate", ["--seeds", "0.5"], "--seeds takes whole numbers"),
    "seeds twice": ("validate", ["--seeds", "1,1"], "each named once"),
}
REQUESTS = [
    pytest.param(command, *case, id=f"{command}: {name}") for name, (command, *case) in WRONG_FOR.items()
]
REQUESTS += [pytest.param("predict", *case, id=f"predict: {name}") for name, case in WRONG.items()]
REQUESTS += [
    pytest.param(command, *WRONG["method"], id=f"{command}: method") for command in ("spectrum", "validate")
]


@pytest.mark.parametrize(("command", "wrong", "message"), REQUESTS)
def test_a_wrong_request_is_one_line_and_status_2(
    capsys, folder, options, tmp_path, monkeypatch, command, wrong, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HESSIAN_LR_CACHE", str(tmp_path / "cache"))
    wrong = [argument.format(folder=folder) for argument in wrong]
    assert main([command, *options, *wrong]) == 2
    said = capsys.readouterr()
    assert said.out == "" and list(tmp_path.iterdir()) == [], "nothing may be half-done"
    (line,) = said.err.splitlines()
    assert line.startswith("hessian-lr: error: ") and message in line


# Only the model itself can tell these.
LOADED = ("model", "rank too large", "too little data", "no such module")


@pytest.mark.parametrize("name", [name for name in WRONG if name not in LOADED])
def test_what_can_be_known_before_a_model_is_loaded_is_said_before(folder, options, monkeypatch, name):
    def refuse(*_arguments, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hessian_lr.models.load", refuse)
    wrong = [argument.format(folder=folder) for argument in WRONG[name][0]]
    assert main(["predict", *options, *wrong]) == 2


def test_fast_is_refused_before_a_model_is_loaded(capsys, options, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hessian_lr.models.load", refuse)
    wanted = ["--fast", "--predictor", "eigenvalue", "--method", "lora", "--method", "pissa"]
    assert main(["predict", *options, *wanted]) == 2
    assert "pissa needs Lanczos" in capsys.readouterr().err


def test_a_method_that_does_not_fit_is_refused_before_the_first_one_is_measured(capsys, options, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("work was begun")

    monkeypatch.setattr("hessian_lr.session.prepare", refuse)
    # GraLoRA splits the rank into two blocks, so an odd one does not fit it.
    assert main(["predict", *options, "--method", "lora", "--method", "gralora", "--rank", "3"]) == 2
    assert "gralora" in capsys.readouterr().err.lower()


def test_nan_weights_fail_with_status_1_and_no_number(capsys, folder, options):
    assert main(["predict", *options, "--model", str(folder / "nan"), "--json", "-"]) == 1
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == "" and "NaN or infinite values" in line


def test_a_truncated_cache_is_named_with_its_mend(capsys, folder, options, tmp_path, monkeypatch):
    home = tmp_path / "models" / "smollm2-135m"
    home.mkdir(parents=True)
    (home / "manifest.json").write_text(json.dumps({"files": {"model.safetensors": {"bytes": 1000}}}))
    (home / "model.safetensors").write_bytes(b"half")
    monkeypatch.setenv("HESSIAN_LR_CACHE", str(tmp_path))
    assert main(["predict", *options, "--model", "smollm2-135m"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 4 bytes, expected 1,000 bytes" in line and "delete the folder" in line


def test_one_failed_method_does_not_keep_the_others_from_their_result(capsys, options, monkeypatch):
    real = session.prepare

    def fails_for_pissa(setting, *rest):
        if setting.method == "pissa":
            raise HessianLRError("the singular values did not converge")
        return real(setting, *rest)

    monkeypatch.setattr(session, "prepare", fails_for_pissa)
    methods = [part for name in ("lora", "pissa", "olora") for part in ("--method", name)]
    status, found = run_json(capsys, "predict", *options, *methods)
    assert status == 1
    assert [row["status"] == "failed" for row in found["results"]] == [False, True, False]
    failed = found["results"][1]
    assert failed["lr"] is failed["lr_low"] is failed["lr_high"] is None
    assert failed["notes"] == ["the singular values did not converge"] and failed.keys() >= PREDICT_KEYS


def test_a_method_refused_late_keeps_the_others_result_and_ends_with_status_2(capsys, options, monkeypatch):
    real = session.prepare

    def refuses_pissa(setting, *rest):
        if setting.method == "pissa":
            raise RequestError("this adapter does not fit")
        return real(setting, *rest)

    monkeypatch.setattr(session, "prepare", refuses_pissa)
    methods = [part for name in ("lora", "pissa", "olora") for part in ("--method", name)]
    status, found = run_json(capsys, "predict", *options, *methods)
    assert status == 2
    assert [row["status"] == "failed" for row in found["results"]] == [False, True, False]
    assert found["results"][1]["notes"] == ["this adapter does not fit"]
    assert main(["predict", *options, "--method", "pissa"]) == 2
    assert capsys.readouterr().err == "hessian-lr: error: this adapter does not fit\n"


def test_an_unexpected_error_is_one_line_and_debug_shows_the_traceback(capsys, options, monkeypatch):
    def broken(*_arguments, **_options):
        raise ZeroDivisionError("a bug\nof two lines")

    monkeypatch.setattr("hessian_lr.models.load", broken)
    assert main(["predict", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: a bug of two lines" in line and "--debug" in line
    assert main(["predict", *options, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_one_line_and_status_130(capsys, options, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hessian_lr.models.load", interrupt)
    assert main(["predict", *options]) == 130
    assert capsys.readouterr().err == "hessian-lr: interrupted\n"


def test_tables_are_plain_and_fit_80_columns_when_piped(capsys, options, validated):
    again = ("--lrs", "0.01,0.1,1", "--seeds", "0,1", "--out", str(validated))
    assert main(["validate", *options, "--method", "pissa", "--quiet", *again]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "pissa" in said.out and "regret" in said.out
    assert "\x1b" not in said.out and "…\n" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize("command", ["predict", "spectrum", "validate", "align", "calibrate", "list"])
def test_the_help_of_each_command_ends_with_an_example(capsys, command):
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1].startswith(f"    hessian-lr {command}") and "Example:" in lines[-2]


def test_help_and_version_load_no_torch():
    code = (
        "import sys; from hessian_lr.cli import main; "
        "assert main(['--version']) == main(['predict', '--help']) == 0; assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hessian-lr 0.")
