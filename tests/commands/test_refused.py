"""What a command says, and how it ends, where the request is wrong or the work fails."""

import json

import pytest
from command_line import PREDICT_KEYS, run_json

from hessian_lr import prepare
from hessian_lr.cli import main
from hessian_lr.errors import HessianLRError, RequestError

pytestmark = pytest.mark.usefixtures("one_thread")

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
    "one step": (["--steps", "1"], "steps must be a whole number of at least 2 (the first has "),
    "rank not a number": (["--rank", "eight"], "'--rank'"),
    "rank too large": (["--rank", "4000"], "rank 4000 is larger than"),
    "empty data": (["--data", "{folder}/empty.jsonl"], "empty.jsonl has no rows"),
    "too little data": (["--data", "{folder}/two.jsonl"], "at least 2"),
    "no data": (["--data", "{folder}/none.jsonl"], "there is no file"),
    "batch size": (["--batch-size", "99"], "a batch of 99 is more than the 58 training rows of"),
    "no such module": (["--target-modules", "qproj"], "qproj"),
    "an unset variable for a model": (["--model", ""], "model is empty"),
    "an unset variable for data": (["--data", ""], "data is empty"),
    "an unset variable for an adapter": (["--peft-config", ""], "peft_config is empty"),
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
    "samples auto": ("predict", ["--samples", "auto"], "samples 'auto' is for `hessian-lr spectrum`"),
    "fast": ("predict", ["--fast"], "--fast is for --predictor eigenvalue"),
    "fast olora": (
        "predict",
        ["--fast", "--predictor", "eigenvalue", "--method", "olora"],
        "--fast is for lora and rslora, whose λ has a closed form; olora needs Lanczos",
    ),
    "fast lora+": (
        "predict",
        ["--fast", "--predictor", "eigenvalue", "--method", "lora+"],
        "--fast is for lora and rslora",
    ),
    "bracket olora": (
        "spectrum",
        ["--bracket", "--method", "olora"],
        "--bracket is for methods that start as plain LoRA with B = 0 (lora, rslora, lora+, loft), not for "
        "olora: leave it out",
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


REQUESTS += [
    pytest.param(
        "predict", [*given.split(), "--from", "none"], "--from measures nothing", id=f"from: {given}"
    )
    for given in ("--predictor combined", "--predictor probe --steps 8", "--fast", "--checkpoint x")
]


REQUESTS.append(pytest.param("validate", *WRONG["batch size"], id="validate: batch size"))


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
LOADED = ("model", "batch size", "rank too large", "too little data", "no such module")


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

    monkeypatch.setattr("hessian_lr.study.predicting.prepare", refuse)
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


FAILURES = {
    "failed": (HessianLRError("the singular values did not converge"), 1),
    "refused late": (RequestError("this adapter does not fit"), 2),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_one_methods_failure_keeps_the_others_from_nothing_but_status_0(capsys, options, monkeypatch, kind):
    error, expected = FAILURES[kind]
    real = prepare.prepare

    def fails_for_pissa(setting, *rest):
        if setting.method == "pissa":
            raise error
        return real(setting, *rest)

    monkeypatch.setattr("hessian_lr.study.predicting.prepare", fails_for_pissa)
    methods = [part for name in ("lora", "pissa", "olora") for part in ("--method", name)]
    status, found = run_json(capsys, "predict", *options, *methods, "--predictor", "eigenvalue")
    assert status == expected
    assert [row["status"] == "failed" for row in found["results"]] == [False, True, False]
    failed = found["results"][1]
    assert failed["lr"] is failed["lr_low"] is failed["lr_high"] is None
    assert failed["notes"] == [str(error)] and failed.keys() >= PREDICT_KEYS


def test_a_request_of_one_method_that_is_refused_late_is_an_error_like_any_other(
    capsys, options, monkeypatch
):
    def refuses(*_):
        raise RequestError("this adapter does not fit")

    monkeypatch.setattr("hessian_lr.study.predicting.prepare", refuses)
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
