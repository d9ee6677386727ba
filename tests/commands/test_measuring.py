"""predict, spectrum, list and help: the JSON they promise, and what a shell makes of them."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from command_line import PREDICT_KEYS, SETTING_KEYS, run_json
from peft import LoraConfig

from hessian_lr import cli
from hessian_lr.cli import main
from hessian_lr.commands import spectra
from hessian_lr.predict.start import RTOL

pytestmark = pytest.mark.usefixtures("one_thread")


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
        assert row["samples"] == found["setting"]["samples"], "there are enough rows"


def test_the_adam_predictor_measures_no_eigenvalue_at_the_start(capsys, options):
    _, found = run_json(capsys, "predict", *options, "--predictor", "adam")
    (row,) = found["results"]
    assert row["lr"] > 0 and row["lambda_max"] is None
    assert row["lambda_upper_preconditioned"] >= row["lambda_preconditioned"] > 0


def test_the_eigenvalue_predictor_reports_what_spectrum_measures(capsys, options):
    _, predicted = run_json(capsys, "predict", *options, "--predictor", "eigenvalue")
    # To the same error: a prediction needs no sharper one.
    status, measured = run_json(capsys, "spectrum", *options, "--rtol", str(RTOL))
    (row,), (curvature,) = predicted["results"], measured["results"]
    assert status == 0 and row["lr"] > 0
    assert row["lambda_preconditioned"] is None and row["warmup_steps"] is None
    assert row["lambda_upper_preconditioned"] is None
    for name in ("lambda_max", "lambda_lower", "lambda_upper", "lambda_min", "residual", "sampling_error"):
        assert row[name] == curvature[name] is not None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_what_was_measured_is_shown_though_the_disk_is_full(capsys, options):
    status = main([*map(str, ["predict", *options, "--predictor", "eigenvalue"]), "--json", "/dev/full"])
    told = capsys.readouterr()
    assert status == 1 and "cannot write /dev/full: No space left" in told.err
    assert "what it held before" not in told.err
    assert "lora" in told.out and "no learning rate" not in told.out


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
    assert any(note.startswith("no bracket: there is one for methods") for note in olora["notes"])
    assert lora["bracket"]["lower"] <= lora["lambda_max"] * 1.01
    assert lora["lambda_max"] <= lora["bracket"]["upper"]
    assert {"matvecs", "gradient_equivalents", "seconds", "peak_rss_bytes"} <= lora.keys()


@pytest.mark.parametrize("adapter", ["lora+", LoraConfig(r=2), LoraConfig(r=2, use_dora=True)])
def test_plain_lora_by_another_name_is_bracketed_too(adapter, capsys, tmp_path, options):
    if isinstance(adapter, str):
        named = ["--method", adapter]
    else:
        adapter.target_modules = "all-linear"
        adapter.save_pretrained(tmp_path)
        named = ["--peft-config", str(tmp_path)]
        # The adapter says its own.
        del options[options.index("--rank") : options.index("--steps")]
    status, found = run_json(capsys, "spectrum", *options, *named, "--bracket")
    (row,) = found["results"]
    assert status == 0
    if not isinstance(adapter, str) and adapter.use_dora:
        told = "no bracket: the closed form does not hold for DoRA"
        assert row["bracket"] is None and any(one.startswith(told) for one in row["notes"])
    else:
        ends = row["bracket"]
        assert ends["lower"] <= row["lambda_upper"] and row["lambda_max"] <= ends["upper"]


@pytest.mark.parametrize("other", ["--bracket", "--per-module"])
def test_the_hessians_numbers_do_not_stand_beside_its_gauss_newton_part(other, capsys, options):
    assert main(["spectrum", *options, "--operator", "gauss-newton", other]) == 2
    assert "--bracket and --per-module measure the Hessian" in capsys.readouterr().err


def shown_and_written(capsys, tmp_path, *arguments):
    """What a command shows and the JSON that it writes, of one measurement."""
    capsys.readouterr()
    status = main([*map(str, arguments), "--quiet", "--json", str(tmp_path / "told.json")])
    return status, capsys.readouterr().out, json.loads((tmp_path / "told.json").read_text())


def test_spectrum_tells_density_and_modules_when_asked(capsys, options, tmp_path):
    asked = ("--density", "--per-module")
    status, shown, found = shown_and_written(capsys, tmp_path, "spectrum", *options, *asked)
    (row,) = found["results"]
    assert status == 0 and row["bracket"] is None
    assert row["held_out"] is not None and row["held_out_error"] > 0
    modules = {one["name"]: one["lambda_max"] for one in row["modules"]["modules"]}
    # A block's eigenvalue is a Rayleigh quotient of the whole matrix.
    assert 0 < max(modules.values()) <= row["lambda_upper"]
    nodes = [node for probe in row["density"]["nodes"] for node in probe]
    assert row["lambda_min"] * 1.1 <= min(nodes) <= max(nodes) <= row["lambda_upper"]
    assert "trace" in shown and "sharpest" in shown and "held out" in shown


def test_spectrum_tells_the_largest_eigenvalues_when_asked(capsys, options, tmp_path):
    status, shown, found = shown_and_written(capsys, tmp_path, "spectrum", *options, "--top", "3")
    (row,) = found["results"]
    assert status == 0 and row["top"]["status"] == "converged"
    first, second, third = row["top"]["values"]
    assert first == pytest.approx(row["lambda_max"], rel=0.05) and first >= second >= third
    assert row["request"]["top"] == 3
    assert "largest eigenvalues" in shown and "residuals at most" in shown
    assert main(["spectrum", *options, "--top", "0"]) == 2
    assert "top must be a whole number of at least 1, not 0" in capsys.readouterr().err


def test_what_stops_or_lacks_memory_beside_lambda_leaves_it_and_is_told(capsys, options, monkeypatch):
    def lacking(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    real = spectra.top_eigenvalues
    monkeypatch.setattr(spectra, "top_eigenvalues", partial(real, max_products=3))
    _, found = run_json(capsys, "spectrum", *options, "--top", "2")
    (row,) = found["results"]
    assert row["top"]["status"] == "budget"
    assert any(one.startswith("largest eigenvalues: stopped after") for one in row["notes"])
    monkeypatch.setattr(spectra, "top_eigenvalues", lacking)
    status, found = run_json(capsys, "spectrum", *options, "--top", "2")
    (row,) = found["results"]
    assert status == 0 and row["lambda_max"] > 0 and row["top"] is None
    assert any("no 2 largest eigenvalues: out of memory" in one for one in row["notes"])


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


def test_list_names_what_the_other_commands_take(capsys):
    status, found = run_json(capsys, "list")
    assert status == 0
    assert {"lora", "pissa"} <= {entry["name"] for entry in found["methods"]}
    assert "math" in {entry["name"] for entry in found["tasks"]}
    assert "smollm2-135m" in {entry["name"] for entry in found["models"]}
    assert main(["list", "tasks"]) == 0
    assert "math" in capsys.readouterr().out


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
