"""A setting refuses what cannot be, fills in what was left out, and names its files the same way always."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from hessian_lr.errors import RequestError
from hessian_lr.setting import Setting


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, not 0"),
        ({"rank": 2.0}, "rank must be a whole number of at least 1, not 2.0"),
        ({"rank": True}, "rank must be a whole number of at least 1, not True"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"steps": 1}, "steps must be a whole number of at least 2 .the first has .* rate 0., not 1"),
        ({"samples": 0}, "samples must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"max_length": 1}, "max_length must be a whole number of at least 2"),
        ({"alpha": 0.0}, "alpha must be a positive number, not 0.0"),
        ({"alpha": float("nan")}, "alpha must be a positive number, not nan"),
        ({"alpha": float("inf")}, "alpha must be a positive number, not inf"),
        ({"alpha": "16"}, "alpha must be a positive number, not '16'"),
        ({"optimizer": "adam"}, r"unknown optimizer 'adam'\. Did you mean 'adamw'"),
        ({"dtype": "float16"}, r"unknown dtype 'float16'"),
        ({"model": ""}, "model is empty: name one, or leave it out"),
        ({"data": ""}, "data is empty: name one"),
        ({"peft_config": ""}, "peft_config is empty: name one"),
        ({"fields": ()}, "fields must name"),
        ({"fields": ("a", "b", "c")}, "fields must name .* not 'a,b,c'"),
        ({"fields": ("prompt", "")}, "fields must name"),
        ({"target_modules": ()}, "target_modules must be 'all-linear' or at least one"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        Setting(**changes)
    assert caught.value.exit_status == 2


def test_alpha_left_out_is_the_rank() -> None:
    assert Setting(rank=8).alpha == 8.0
    assert Setting(rank=8).scaling == 1.0
    assert Setting(rank=8, alpha=12).scaling == 1.5


def test_a_setting_comes_back_from_json_with_its_key() -> None:
    setting = Setting(fields=("q", "a"), alpha=12, target_modules=("q_proj", "v_proj"), seed=3)
    again = Setting.from_dict(json.loads(json.dumps(setting.to_dict())))
    assert again == setting
    assert again.key == setting.key


def test_one_setting_has_one_key_however_it_was_written() -> None:
    assert len({Setting().key, Setting(alpha=16).key, Setting(alpha=16.0).key}) == 1


OTHER = {
    "model": "other",
    "data": "code",
    "fields": ("a", "b"),
    "method": "pissa",
    "rank": 8,
    "alpha": 3.0,
    "target_modules": ("q_proj",),
    "batch_size": 5,
    "steps": 61,
    "seed": 1,
    "samples": 17,
    "max_length": 511,
    "optimizer": "sgd",
    "device": "cpu",
    "dtype": "float32",
}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_counts_in_the_key(name: str) -> None:
    assert Setting(**{name: OTHER[name]}).key != Setting().key


@pytest.mark.parametrize("name", OTHER)
def test_where_a_run_runs_and_the_curvature_sample_are_no_part_of_its_training(name: str) -> None:
    same = Setting(**{name: OTHER[name]}).training_identity() == Setting().training_identity()
    assert same == (name in {"samples", "device"})


def test_the_table_above_misses_no_field() -> None:
    # test_peft_config has the last one.
    assert set(OTHER) | {"peft_config"} == {field.name for field in dataclasses.fields(Setting)}


def test_the_key_is_the_same_in_every_process() -> None:
    program = "from hessian_lr.setting import Setting; print(Setting(fields=('q', 'a')).key)"
    keys = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert keys == {Setting(fields=("q", "a")).key}
