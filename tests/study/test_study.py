"""What the commands do, from Python: the same numbers, files and refusals."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_json
from peft import LoraConfig
from tiny_text import save, sums, tiny_llama, write_rows

import hessian_lr as hlr
from hessian_lr import study
from hessian_lr.errors import HessianLRError, NonFiniteError, RequestError
from hessian_lr.figures.style import save as save_figure
from hessian_lr.records import write_json
from hessian_lr.setting import Setting
from hessian_lr.spectrum import checkpoint
from hessian_lr.study.validating import checked
from hessian_lr.sweep import Sweep, engine

pytestmark = pytest.mark.usefixtures("one_thread")

LRS, SEEDS = (0.03, 0.3, 3.0), (0,)
# What no two measurements share.
TIMES = ("seconds", "peak_rss_bytes", "sweep_seconds")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("study")
    save(tiny_llama(initializer_range=0.2), root / "model")
    # One without a response, which is left out and told.
    write_rows(root / "rows.jsonl", [*sums(8), {"prompt": "nothing", "response": ""}])
    names = {"model": str(root / "model"), "data": str(root / "rows.jsonl")}
    return Setting(**names, rank=2, steps=8, samples=8, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def options(setting: Setting) -> list[str]:
    """The setting on the command line."""
    named = ("model", "data", "rank", "steps", "samples", "device", "dtype")
    return [part for name in named for part in (f"--{name}", str(getattr(setting, name)))]


@pytest.fixture(scope="module")
def validated(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> list[study.Validated]:
    settings = [setting, dataclasses.replace(setting, method="pissa")]
    out = tmp_path_factory.mktemp("validated") / "runs"
    return study.validate(settings, out, lrs=LRS, seeds=SEEDS, quiet=True)


def timeless(row: dict) -> dict:
    kept = {name: value for name, value in row.items() if name not in TIMES}
    return kept | {"runs": [timeless(run) for run in row["runs"]]} if "runs" in row else kept


def test_a_prediction_is_the_commands_and_nothing_is_printed(setting, options, capfd):
    found = hlr.study.predict(setting, quiet=True)
    assert capfd.readouterr() == ("", "")
    _, told = run_json(capfd, "predict", *options, "--quiet")
    (row,) = told["results"]
    assert isinstance(found, hlr.Prediction)
    assert (found.lr, found.lr_low, found.lr_high) == (row["lr"], row["lr_low"], row["lr_high"])
    assert found.curvature.lambda_max == row["lambda_max"]
    assert found.adam.lambda_preconditioned == row["lambda_preconditioned"]
    assert found.adam.upper == row["lambda_upper_preconditioned"] >= row["lambda_preconditioned"]
    assert found.adam.rounding is row["rounding_preconditioned"] is None, "in float32"
    assert list(found.notes) == [*told["notes"], *row["notes"]]


def test_short_runs_are_kept_where_a_place_is_named_and_not_trained_again(setting, tmp_path, monkeypatch):
    longer = dataclasses.replace(setting, steps=60)
    asked = {"predictor": "probe", "checkpoint": tmp_path / "kept", "quiet": True}
    found = study.predict(longer, **asked)
    assert found.predictor == "probe" and found.probe.steps == 6
    monkeypatch.setattr(engine, "train_once", None)
    assert study.predict(longer, **asked).probe == found.probe


def test_a_prediction_that_fails_says_why_in_its_last_note(setting, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise NonFiniteError("the loss is NaN")

    monkeypatch.setattr("hessian_lr.predict.predictor.adam_sharpness", fails)
    found = study.predict(setting, predictor="adam", quiet=True)
    assert (found.status, found.lr) == ("failed", None) and "the loss is NaN" in found.notes[-1]


def test_a_validation_has_the_commands_rows_and_files(setting, options, validated, tmp_path, capfd):
    rates = ["--method", "pissa", "--lrs", ",".join(map(str, LRS)), "--seeds", "0"]
    _, told = run_json(capfd, "validate", *options, *rates, "--out", tmp_path / "runs", "--quiet")
    assert [timeless(validated[1].row.to_dict())] == [timeless(row) for row in told["results"]]
    assert [one.method for one in validated] == ["lora", "pissa"]
    assert list(validated[1].notes) == told["notes"] and "left out" in told["notes"][0]
    assert [one.setting for one in validated] == [setting, dataclasses.replace(setting, method="pissa")]
    places = (tmp_path / "runs", validated[0].file.parent)
    theirs, ours = ({path.relative_to(place) for path in place.rglob("*")} for place in places)
    assert theirs < ours, "those of its own method, by the same names"


def test_the_same_call_trains_nothing_again_and_results_are_read_back(validated, monkeypatch):
    monkeypatch.setattr(engine, "train_once", None)
    out = validated[0].file.parent
    again = study.validate([one.setting for one in validated], out, lrs=LRS, seeds=SEEDS, quiet=True)
    assert again == validated == study.read(out) == study.read([str(out)])
    # One of the methods of a folder is itself alone.
    (one,) = study.validate(validated[1].setting, out, lrs=LRS, seeds=SEEDS, quiet=True)
    assert one == validated[1]


def test_a_setting_that_fails_now_is_told_though_the_folder_keeps_what_it_had(
    validated, monkeypatch, tmp_path
):
    out = tmp_path / "runs"
    shutil.copytree(validated[0].file.parent, out)
    before = (out / "validate.json").read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise HessianLRError("the disk is full")

    monkeypatch.setattr("hessian_lr.study.validating.sweep", fails)
    no_runs = Sweep(validated[0].setting, (), True)
    monkeypatch.setattr("hessian_lr.study.validating.finished_runs", lambda *_, **__: no_runs)
    (one,) = study.validate(validated[0].setting, out, lrs=LRS, seeds=SEEDS, quiet=True)
    assert one.row.status == "failed" and "keeps the row of an earlier call" in one.row.notes[0]
    assert "sweep failed: the disk is full" in one.row.notes
    assert (out / "validate.json").read_bytes() == before


def test_a_best_learning_rate_is_moved_to_another_setting_without_a_model(validated):
    best = next(one for one in validated if not one.row.censored)
    larger = dataclasses.replace(best.setting, batch_size=2 * best.setting.batch_size)
    same, doubled = (study.transfer(one, str(best.file.parent)) for one in (best.setting, larger))
    assert same.predictor == "transfer" and same.lr == pytest.approx(best.row.best_lr)
    assert doubled.lr != same.lr and doubled.curvature is None


def other(one: Setting, **changed: object) -> Setting:
    return dataclasses.replace(one, **changed)


REFUSED = {
    "no setting": (lambda s: [], "there is no setting here"),
    "another rank": (lambda s: [s, other(s, rank=4, method="pissa")], "differ in their method alone, not in"),
    "twice": (lambda s: [s, other(s)], "a method comes twice"),
    "no such method": (lambda s: [other(s, method="lora2")], "unknown method 'lora2'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_settings_that_do_not_go_together_are_refused_before_a_model_is_loaded(
    setting, tmp_path, monkeypatch, kind
):
    settings, said = REFUSED[kind]
    monkeypatch.setattr("hessian_lr.models.load", None)
    with pytest.raises(RequestError, match=re.escape(said)):
        study.validate(settings(setting), tmp_path / "runs", quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"predictor": "guess"}, "unknown predictor 'guess'"),
        ({"predictor": "probe"}, "8 steps are too few"),
        ({"lrs": (0.0,)}, "learning rate"),
        ({"seeds": ()}, "seed"),
        ({"calibration": "nowhere.json"}, "cannot read nowhere.json"),
    ],
)
def test_what_is_asked_for_is_checked_before_a_model_is_loaded(setting, tmp_path, monkeypatch, asked, said):
    monkeypatch.setattr("hessian_lr.models.load", None)
    with pytest.raises(RequestError, match=re.escape(said)):
        study.validate(setting, tmp_path / "runs", quiet=True, **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"lrs": np.array(LRS, dtype=np.float32), "seeds": np.arange(1)},
        {"lrs": (lr for lr in LRS), "seeds": (seed for seed in SEEDS)},
        {"lrs": [3, 0.3, 0.03], "seeds": [np.int64(0)]},
    ],
    ids=["arrays", "generators", "any order"],
)
def test_learning_rates_and_seeds_are_taken_from_whatever_holds_them(setting, tmp_path, asked):
    found = checked([setting], tmp_path, predictor="combined", calibration=None, **asked)
    assert found.lrs == pytest.approx(LRS) and all(type(lr) is float for lr in found.lrs)
    assert found.seeds == SEEDS and type(found.seeds[0]) is int


def test_places_may_be_paths_and_begin_at_home(setting, tmp_path, monkeypatch):
    paths = dataclasses.replace(setting, model=Path(setting.model), data=Path(setting.data))
    assert paths == setting and type(paths.model) is str
    monkeypatch.setenv("HOME", str(tmp_path))
    found = checked([setting], "~/runs", predictor="combined", calibration=None, lrs=None, seeds=(0,))
    assert found.out == tmp_path / "runs"
    with pytest.raises(RequestError, match=re.escape(f"there is no {tmp_path}/none")):
        study.read("~/none.json")


@pytest.mark.parametrize("work", [study.predict, study.validate])
def test_a_place_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    setting, tmp_path, monkeypatch, work
):
    monkeypatch.setattr("hessian_lr.models.load", None)
    (tmp_path / "file").write_text("")
    place = {"checkpoint" if work is study.predict else "out": tmp_path / "file"}
    with pytest.raises(RequestError, match="is a file, not a folder"):
        work(setting, quiet=True, **place)
    place = dict.fromkeys(place, Path(setting.model) / "kept")
    with pytest.raises(RequestError, match="would stand among the files of"):
        work(setting, quiet=True, **place)


def test_an_adapter_of_your_own_is_no_other_method(setting, tmp_path):
    LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(tmp_path)
    own = dataclasses.replace(setting, peft_config=tmp_path)
    assert own.method == "peft-config" and dataclasses.replace(own, steps=9).steps == 9
    with pytest.raises(RequestError, match="the method 'pissa' contradicts"):
        dataclasses.replace(own, method="pissa")


def test_settings_of_a_sweep_are_told_apart_in_the_picture_and_keep_what_their_file_says(validated, tmp_path):
    row = validated[0].row
    more = {"seeds": [0], "lrs": "auto", "missing": [], "data_digest": "d", "model_fingerprint": "m"}
    common = {name: value for name, value in validated[0].setting.to_dict().items() if name != "seed"}
    own = ({"label": f"rank {rank}", "setting": common | {"rank": rank}} for rank in (2, 4))
    rows = [row.to_dict() | more | one for one in own]
    rows[0] |= {"status": "failed", "prediction_status": "converged"}
    write_json(tmp_path / "sweep.json", {"schema": 1, "file": "f", "varying": ["rank"], "results": rows})
    found = study.read(tmp_path)
    assert [one.row.status for one in found] == ["failed", "converged"]
    assert [one.row.measured_status for one in found] == ["converged", "converged"]
    titles = [axes.get_title(loc="left") for axes in study.sweep_figure(found).axes]
    assert [title.split("  ")[0] for title in titles] == ["rank 2", "rank 4"]


def test_results_do_not_go_among_the_files_of_the_model(setting):
    before = sorted(Path(setting.model).iterdir())
    with pytest.raises(RequestError, match="would stand among the files of"):
        study.validate(setting, Path(setting.model) / "runs", quiet=True)
    assert sorted(Path(setting.model).iterdir()) == before


def test_gradient_descent_has_no_prediction(setting):
    with pytest.raises(RequestError, match="sgd"):
        study.predict(other(setting, optimizer="sgd"), quiet=True)


def test_pictures_and_theory_are_those_of_the_commands(validated, tmp_path, capfd):
    """The figures as `validate` saved them, the numbers as `align` tells them."""
    rows = study.read([validated[0].file.parent])
    for draw, name in ((study.sweep_figure, "sweep"), (study.eigenvalue_figure, "eigenvalue")):
        svg, _ = save_figure(draw(rows), tmp_path / name)
        assert svg.read_bytes() == (validated[0].file.parent / f"{name}.svg").read_bytes()
    _, told = run_json(capfd, "align", validated[0].file.parent, "--quiet")
    # Every setting counts once, however often its folder is named.
    assert study.align([*rows, *rows]).to_dict() == told["alignment"]


def test_results_that_do_not_compare_are_refused(validated):
    trained = dataclasses.replace(validated[0], common=validated[0].common | {"optimizer": "sgd"})
    with pytest.raises(RequestError, match="learning rates of different optimizers do not compare"):
        study.align([validated[1], trained])
    with pytest.raises(RequestError, match="nothing to draw"):
        study.eigenvalue_figure([])


def _no_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


# Where memory runs out, and which of the two measurements is left without a number.
LACKS = {
    "in the warm-up": ("hessian_lr.measure.warmup.summed_loss", "lambda_preconditioned"),
    "in the search along a step": (
        "hessian_lr.measure.first_step.critical_learning_rate",
        "lambda_preconditioned",
    ),
    "in Lanczos": ("hessian_lr.measure.joint._Measurement._search", "lambda_max"),
}


@pytest.mark.parametrize("where", LACKS)
def test_half_a_prediction_for_want_of_memory_is_told_and_tried_again(setting, tmp_path, monkeypatch, where):
    place, lacking = LACKS[where]
    (other,) = {"lambda_preconditioned", "lambda_max"} - {lacking}
    asked = {"lrs": LRS, "seeds": SEEDS, "quiet": True}
    with monkeypatch.context() as patch:
        patch.setattr(place, _no_memory)
        (short,) = study.validate(setting, tmp_path, **asked)
    assert short.row.status == "budget" and any("out of memory" in note for note in short.row.notes)
    assert getattr(short.row, lacking) is None and getattr(short.row, other) and short.row.predicted_lr
    assert not list(tmp_path.glob("prediction-*.json"))
    (again,) = study.validate(setting, tmp_path, **asked)
    assert again.row.status == "converged" and again.row.lambda_max and again.row.lambda_preconditioned
    assert list(tmp_path.glob("prediction-*.json")) and not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("command", [False, True])
def test_the_states_of_half_a_prediction_stay_until_it_is_whole(
    setting, options, tmp_path, monkeypatch, capfd, command
):
    monkeypatch.setattr(checkpoint, "SHARE", float("inf"))
    kept = tmp_path / "kept"

    def predicted() -> str:
        if command:
            _, told = run_json(capfd, "predict", *options, "--checkpoint", kept, "--quiet")
            return told["results"][0]["status"]
        return study.predict(setting, checkpoint=kept, quiet=True).status

    with monkeypatch.context() as patch:
        patch.setattr("hessian_lr.measure.warmup.summed_loss", _no_memory)
        assert predicted() == "budget"
    assert list(kept.glob("lanczos-start-*"))
    assert predicted() == "converged"
    assert not kept.exists()
