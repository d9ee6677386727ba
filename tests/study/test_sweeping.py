"""Grids from Python: what a mapping asks for, and that its sweep is the command's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_json
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tiny_text import save, sums, tiny_llama, write_rows

from hessian_lr import study
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.setting import Setting
from hessian_lr.study.sweeping import checked
from hessian_lr.sweep import engine
from hessian_lr.sweep.nodes import Nodes, as_yaml
from hessian_lr.sweep.request import read

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = ("seconds", "peak_rss_bytes", "sweep_seconds")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("sweeping")
    save(tiny_llama(initializer_range=0.2), root / "model")
    write_rows(root / "rows.jsonl", sums(8))
    return {
        **{"model": root / "model", "data": root / "rows.jsonl", "device": "cpu", "dtype": "float32"},
        **{"method": ("lora", "pissa"), "rank": np.array([2, 4]), "steps": 8, "samples": 8},
        **{"lr": np.geomspace(0.03, 3, 3), "exclude": [{"method": "pissa", "rank": 4}]},
    }


@pytest.fixture(scope="module")
def swept(grid: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[study.Validated]:
    return study.sweep(grid, tmp_path_factory.mktemp("swept") / "runs", predictor="eigenvalue", quiet=True)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: timeless(one) for name, one in value.items() if name not in TIMES}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def test_a_sweep_from_a_mapping_is_that_of_its_file_by_the_command(swept, tmp_path, capfd):
    folder = swept[0].file.parent
    assert [one.row.label for one in swept] == ["lora, rank 2", "lora, rank 4", "pissa, rank 2"]
    assert [one.setting.rank for one in swept] == [2, 4, 2]
    assert all(one.row.predicted_lr and len(one.row.runs) == 3 for one in swept)
    asked = [folder / "grid.yaml", "--out", tmp_path / "runs", "--predictor", "eigenvalue", "--quiet"]
    _, told = run_json(capfd, "sweep", *asked)
    assert timeless([one.row.to_dict() for one in swept]) == timeless(told["results"])
    ours, theirs = (
        {path.relative_to(place) for path in place.rglob("*")} for place in (folder, tmp_path / "runs")
    )
    assert ours == theirs | {Path("grid.yaml")}


def test_it_is_read_back_and_gone_on_with_from_either_side(grid, swept, monkeypatch, capfd):
    folder = swept[0].file.parent
    monkeypatch.setattr(engine, "train_once", None)
    assert study.read(folder) == swept == study.sweep(grid, folder, predictor="eigenvalue", quiet=True)
    status, _ = run_json(
        capfd, "sweep", folder / "grid.yaml", "--out", folder, "--predictor", "eigenvalue", "--quiet"
    )
    assert status == 0
    assert study.sweep(folder / "grid.yaml", folder, predictor="eigenvalue", quiet=True) == swept


def test_a_plan_counts_what_is_there_and_makes_nothing(grid, swept, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "train_once", None)
    done = study.plan(grid, swept[0].file.parent, quiet=True)
    assert (done.settings, done.runs, done.done, done.to_go) == (3, (9, 9), 9, (0, 0))
    fresh = study.plan(grid, tmp_path / "none", predictor="eigenvalue", limit=2, quiet=True)
    assert (fresh.done, fresh.to_go, fresh.predictions) == (0, (2, 2), 3) and fresh.seconds[0] > 0
    assert not (tmp_path / "none").exists()


def test_settings_without_a_run_are_among_the_results(grid, tmp_path, monkeypatch):
    (first, *others) = study.sweep(grid, tmp_path / "runs", limit=1, quiet=True)
    assert first.row.status == "partial" and len(first.row.missing) == 2
    assert [one.row.status for one in others] == ["missing", "missing"]
    assert [one.setting.rank for one in others] == [4, 2]

    def fails(*_: object, **__: object) -> None:
        raise HessianLRError("the disk is full")

    monkeypatch.setattr(engine, "train_once", fails)
    found = study.sweep(grid, tmp_path / "other", quiet=True)
    assert [one.row.status for one in found] == ["failed"] * 3
    assert "the disk is full" in found[0].row.notes[0]


WRONG = {
    "a key": ({"rnk": 4}, "the grid: unknown key 'rnk'. Did you mean 'rank'?"),
    "a value": ({"rank": [4, 2.5]}, "the grid, rank: expected a whole number, not 2.5"),
    "samples that grow": (
        {"samples": "auto"},
        "the grid, samples: expected a whole number, not auto: 'auto' is for `hessian-lr spectrum`",
    ),
    "a method": ({"method": ["lora", "pisa"]}, "the grid, method: unknown method 'pisa'"),
    "an object": ({"rank": object()}, "the grid has a object"),
    "an iterator": ({"rank": iter([2, 4])}, "the grid, rank: an iterator is spent after one use"),
    "no mapping": ([{"rank": 4}], "a grid is a YAML file or a mapping with its keys, not a list"),
    "one value or two": (
        {"target_modules": ["q_proj", "v_proj"]},
        "target_modules: ['q_proj', 'v_proj'] may be one value or 2: write ('q_proj', 'v_proj') for one, or "
        "[('q_proj',), ('v_proj',)] for 2",
    ),
    "no text": ({"model": "\ud800"}, "text that UTF-8 cannot hold"),
    "nothing": ({}, "the grid is empty"),
    "itself": ({"exclude": []}, "nested too deeply"),
    "a learning rate": ({"lr": {"from": 1e-2, "to": 1e-3}}, "from 0.01 is above to 0.001"),
    "an exclusion": ({"rank": 4, "exclude": {"rank": 8}}, "the grid, exclude: fits none of the settings"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_in_a_mapping_is_told_before_anything_is_written(tmp_path, monkeypatch, kind):
    mapping, said = WRONG[kind]
    if kind == "itself":
        mapping["exclude"].append(mapping)
    monkeypatch.setattr("hessian_lr.models.load", None)
    for work in (study.sweep, study.plan):
        with pytest.raises(RequestError, match=re.escape(said)):
            work(mapping, tmp_path / "runs", quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"limit": -1}, "limit takes a whole number of at least 0"),
        ({"limit": "1"}, "limit takes a whole number of at least 0, not '1'"),
        ({"limit": True}, "limit takes a whole number of at least 0, not True"),
        ({"limit": np.int64(-1)}, "limit takes a whole number of at least 0, not np.int64(-1)"),
        ({"limit": np.float64(1)}, "limit takes a whole number of at least 0, not np.float64(1.0)"),
        ({"calibration": "mine.json"}, "calibration is for what is predicted: name a predictor"),
        ({"predictor": "guess"}, "unknown predictor 'guess'"),
    ],
)
def test_options_are_called_as_in_python(grid, tmp_path, asked, said):
    with pytest.raises(RequestError, match=f"^{re.escape(said)}"):
        study.sweep(grid, tmp_path / "runs", quiet=True, **asked)


def test_results_do_not_go_over_what_is_read(grid, tmp_path):
    with pytest.raises(RequestError, match="would stand among the files of"):
        study.sweep(grid, Path(grid["model"]) / "runs", quiet=True)
    own = tmp_path / "sweep.json"
    own.write_text(as_yaml({"method": "lora"}))
    with pytest.raises(RequestError, match="would overwrite"):
        study.sweep(own, tmp_path, quiet=True)


def test_a_grid_file_of_the_users_own_is_not_overwritten(tmp_path):
    own = tmp_path / "grid.yaml"
    own.write_text("# mine\nrank: 4\n")
    with pytest.raises(
        RequestError, match=f"{re.escape(str(own))} is not of a grid that was given from Python"
    ):
        study.sweep({"rank": 8}, tmp_path, quiet=True)
    (tmp_path / "constants" / "grid.yaml").mkdir(parents=True)
    with pytest.raises(RequestError, match="would be overwritten"):
        study.sweep({"rank": 8}, tmp_path / "constants", quiet=True)
    assert own.read_text() == "# mine\nrank: 4\n"


def test_what_is_none_keeps_its_default_so_that_a_setting_may_be_started_from(grid, tmp_path):
    adapter = tmp_path / "adapter"
    LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(adapter)
    own = Setting(model=str(grid["model"]), peft_config=adapter)
    assert read({**Setting().to_dict(), "rank": [2, 4]}).base.axes["rank"] == (2, 4)
    assert read({"peft_config": own.peft_config}).base.axes["peft_config"] == (str(adapter),)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (("q_proj", "v_proj"), (("q_proj", "v_proj"),)),
        ([("q_proj", "v_proj"), "all-linear"], (("q_proj", "v_proj"), "all-linear")),
        ("q_proj,v_proj", (("q_proj", "v_proj"),)),
        ({"v_proj", "q_proj"}, (("q_proj", "v_proj"),)),
        (tuple(np.array(["q_proj", "v_proj"])), (("q_proj", "v_proj"),)),
        (["q_proj,v_proj", "q_proj"], (("q_proj", "v_proj"), ("q_proj",))),
    ],
    ids=["a tuple", "a list of tuples", "text", "a set", "an array's names", "a list of text with commas"],
)
def test_a_tuple_of_names_is_one_value_and_a_list_is_several(value, expected):
    assert read({"target_modules": value}).base.axes["target_modules"] == expected


@given(
    model=st.lists(
        st.text(st.characters(exclude_categories=["C"]), min_size=1).filter(str.strip), min_size=1
    ),
    lr=st.lists(st.floats(1e-9, 10), min_size=1),
    held=st.sampled_from([list, tuple, np.array]),
)
def test_a_mapping_says_what_its_values_are_and_so_does_its_file(tmp_path_factory, model, lr, held):
    file = tmp_path_factory.mktemp("grid") / "grid.yaml"
    file.write_text(as_yaml({"model": model, "lr": lr}), encoding="utf-8")
    for found in (read({"model": held(model), "lr": held(lr)}).base, read(file).base):
        assert found.axes == {"model": tuple(dict.fromkeys(model))}
        assert found.lrs == tuple(sorted(set(lr)))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("held", [list, np.array])
def test_a_learning_rate_has_the_digits_of_its_own_precision(kind, held):
    rates = [kind(text) for text in ("0.001", "0.002", "0.1")]
    assert read({"lr": held(rates)}).base.lrs == (0.001, 0.002, 0.1)
    assert read({"lr": rates[2]}).base.lrs == (0.1,)
    assert read({"lr": np.array(rates[2])}).base.lrs == (0.1,)
    assert read({"lr": {"from": rates[0], "to": rates[2], "per_decade": np.int64(1)}}).base.lrs == (
        0.001,
        0.01,
        0.1,
    )


def test_a_limit_may_be_numpys(grid, tmp_path):
    assert checked(grid, tmp_path / "runs", limit=np.int64(0)).limit == 0


@pytest.mark.parametrize("text", ["1e5", "0o17", "1:30", "010", "2026-11-30", "yes", "~", "1_0", ".inf", "-"])
def test_text_that_looks_like_something_else_stays_text(text):
    nodes = Nodes(as_yaml({"model": text}), "a file")
    assert nodes.scalar(nodes.root.value[0][1]) == text
    assert read({"model": text}).base.axes["model"] == (text,)
