"""A file of constants: what is refused where it is read, and that earlier versions' are not."""

import json

import pytest

from hessian_lr.cli import main
from hessian_lr.errors import RequestError
from hessian_lr.predict import load_calibration

SHIPPED = load_calibration().to_dict()
# What is changed of a law, and what is said of it.
REFUSED = {
    ("probe", "exponents", "steps"): "exponents of the law 'probe': 'steps'. Known: lr_probe, lr_stability.",
    ("probe", "exponents", "lr_critical_start"): "exponents of the law 'probe': 'lr_critical_start'",
    ("adam", "exponents", "lr_eigenvalue"): "exponents of the law 'adam': 'lr_eigenvalue'",
    ("adam", "exponents", "samples"): "exponents of the law 'adam': 'samples'",
    ("eigenvalue", "exponents", "lr_stability"): "exponents of the law 'eigenvalue': 'lr_stability'",
    ("combined", "exponents", "lr_probe"): "exponents of the law 'combined': 'lr_probe'",
    (
        "combined",
        "references",
        "batchsize",
    ): "references of the law 'combined': 'batchsize'. Did you mean 'batch_size'?",
    ("combined", "spreads", "step"): "spreads of the law 'combined': 'step'. Did you mean 'steps'?",
    ("combined", "domain", "lr_adam"): "domain of the law 'combined': 'lr_adam'",
    ("combined", "domain", "slack"): "domain of the law 'combined': 'slack'",
}


def changed(name, **fields):
    return SHIPPED | {name: SHIPPED[name] | fields}


def said(tmp_path, document):
    """Why a file of these constants is refused."""
    path = tmp_path / "own.json"
    path.write_text(json.dumps(document))
    with pytest.raises(RequestError, match=r"own\.json: ") as told:
        load_calibration(path)
    return str(told.value)


@pytest.mark.parametrize("case", REFUSED, ids=" ".join)
def test_a_law_of_what_its_predictor_does_not_have_is_refused(tmp_path, case):
    name, part, quantity = case
    value = [1.0, 2.0] if part == "domain" else 1.0
    wrong = changed(name, **{part: SHIPPED[name][part] | {quantity: value}})
    assert REFUSED[case] in said(tmp_path, wrong)


@pytest.mark.parametrize("name", ["combined", "adam", "eigenvalue"])
@pytest.mark.parametrize("exponents", [{}, {"steps": -0.2}], ids=str)
def test_a_law_of_nothing_measured_is_refused(tmp_path, name, exponents):
    wrong = changed(name, exponents=exponents)
    assert f"the law {name!r} has no exponent of anything measured" in said(tmp_path, wrong)


@pytest.mark.parametrize(
    "exponents", [{"lr_stability": 1.0}, {"lr_probe": 0.0, "lr_stability": 1.0}], ids=str
)
def test_a_law_of_short_runs_without_them_is_refused(tmp_path, exponents):
    wrong = changed("probe", exponents=exponents)
    assert "needs an exponent of lr_probe, and it must not be 0" in said(tmp_path, wrong)


def test_another_schema_is_refused(tmp_path):
    assert "have the schema 2, not 1: update hessian-lr" in said(tmp_path, SHIPPED | {"schema": 2})


def test_the_command_says_so_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hessian_lr.models.load", None)
    (tmp_path / "own.json").write_text(
        json.dumps(changed("probe", exponents={"lr_probe": 1.0, "steps": 1.0}))
    )
    assert main(["predict", "--predictor", "probe", "--calibration", str(tmp_path / "own.json")]) == 2
    assert "exponents of the law 'probe': 'steps'" in capsys.readouterr().err


def test_files_of_earlier_versions_are_read(tmp_path):
    """They had no law for short runs, another quantity of λ's, and domains of measured quantities too."""
    early = {name: value for name, value in SHIPPED.items() if name != "probe"}
    for name in ("combined", "eigenvalue"):
        law = dict(early[name])
        exponents = {"lr_sharpness": 0.5} | law["exponents"]
        del exponents["lr_eigenvalue"]
        early[name] = law | {"exponents": exponents, "domain": law["domain"] | {"lr_sharpness": [1e-3, 1.0]}}
    (tmp_path / "early.json").write_text(json.dumps(early))
    assert load_calibration(tmp_path / "early.json").probe is None
