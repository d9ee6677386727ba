"""A sweep keeps what it has finished, whatever happens to it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_sweep as tiny

import hessian_lr
from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.sweep import RunResult, Sweep, complete_runs, mean_final_loss, plan, run_key, runner
from hessian_lr.sweep import engine as engines

HELPER = Path(tiny.__file__)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trainings(monkeypatch):
    """Counts real trainings by learning rate and seed."""
    counter = Counter()
    real = engines.train_once

    def counting(setting, lr, loaded, data, initial_loss):
        counter[lr, setting.seed] += 1
        return real(setting, lr, loaded, data, initial_loss)

    monkeypatch.setattr(engines, "train_once", counting)
    return counter


@pytest.fixture
def instant(monkeypatch):
    """Replaces training by a known loss (a bowl around 1e-3), and records the order of the runs."""
    order = []

    def fake(setting, lr, loaded, data, initial_loss):
        order.append((lr, setting.seed))
        final = 1.0 + 0.3 * (math.log10(lr) + 3.0) ** 2 + 0.01 * setting.seed
        key = run_key(setting, lr, data.digest, loaded.fingerprint)
        return RunResult(key, setting, lr, 2.0, final, setting.steps, final > 2.0, 1.0, 10)

    monkeypatch.setattr(engines, "train_once", fake)
    return order


def content(sweep):
    """Everything a sweep says, but for the time it took."""
    whole = sweep.to_dict()
    for run in whole["runs"]:
        del run["seconds"]
    return whole


def files(out):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "runs").glob("*.json")}


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path, trainings):
    out, total = tmp_path / "killed", len(tiny.LRS) * len(tiny.SEEDS)
    path = os.pathsep.join(
        filter(None, [str(Path(hessian_lr.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    child = subprocess.Popen(
        [sys.executable, str(HELPER), str(out)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    while not list((out / "runs").glob("*.json")):
        assert child.poll() is None, "the sweep ended before it wrote a run"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    printed, _ = child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert printed == b""
    finished = files(out)
    assert 1 <= len(finished) < total

    resumed = tiny.tiny_sweep(out)
    assert sum(trainings.values()) == total - len(finished)
    for name, before in finished.items():
        assert files(out)[name] == before, "a finished run was written again"
        kept = json.loads(before[1])
        assert (kept["lr"], kept["setting"]["seed"]) not in trainings
    assert len(files(out)) == total

    uninterrupted = tiny.tiny_sweep(tmp_path / "whole")
    assert content(resumed) == content(uninterrupted)
    assert resumed.notes == ()


def test_a_second_sweep_trains_nothing(tmp_path, instant):
    first = tiny.tiny_sweep(tmp_path)
    count, before = len(instant), files(tmp_path)
    assert tiny.tiny_sweep(tmp_path) == first
    assert (len(instant), files(tmp_path)) == (count, before)


def test_one_file_a_run_named_by_its_key(tmp_path, instant):
    result = tiny.tiny_sweep(tmp_path)
    assert set(files(tmp_path)) == {f"{run.key}.json" for run in result.runs}
    assert all(RunResult.read(tmp_path / "runs" / f"{run.key}.json") == run for run in result.runs)
    assert [(run.lr, run.setting.seed) for run in result.runs] == [
        (lr, s) for lr in tiny.LRS for s in tiny.SEEDS
    ]


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "binary", "field missing", "wrong type", "other run"]
)
def test_a_damaged_run_file_is_named_and_run_again(tmp_path, instant, damage):
    first = tiny.tiny_sweep(tmp_path)
    victim, other = (tmp_path / "runs" / f"{run.key}.json" for run in first.runs[:2])
    whole = victim.read_bytes()
    fields = json.loads(whole)
    victim.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "binary": b"\xff\xfe\x00",
            "field missing": json.dumps({k: v for k, v in fields.items() if k != "steps"}).encode(),
            "wrong type": json.dumps(fields | {"initial_loss": "high"}).encode(),
            "other run": other.read_bytes(),
        }[damage]
    )
    instant.clear()
    again = tiny.tiny_sweep(tmp_path)
    assert instant == [(first.runs[0].lr, first.runs[0].setting.seed)]
    assert again.runs == first.runs
    assert victim.read_bytes() == whole
    assert len(again.notes) == 1
    assert str(victim) in again.notes[0]
    assert "again" in again.notes[0]


def test_a_folder_that_cannot_be_written_is_found_before_any_training(tmp_path, instant):
    obstacle = tmp_path / "file"
    obstacle.write_text("not a folder")
    with pytest.raises(HessianLRError, match=r"cannot write to .*file.*--out") as caught:
        tiny.tiny_sweep(obstacle / "out")
    assert caught.value.exit_status == 1
    assert instant == []


def test_a_setting_that_does_not_fit_is_refused_before_any_training(tmp_path, instant):
    wrong = {"setting": tiny.SETTING, "loaded": tiny.tiny_model(), "data": tiny.tiny_data()}
    wrong["setting"] = type(tiny.SETTING)(method="lora", rank=1000)
    with pytest.raises(RequestError, match="rank 1000"):
        runner.sweep(**wrong, start_lr=1e-3, seeds=(0,), out=tmp_path)
    assert instant == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "once"),
        ({"seeds": (-1,)}, "seed"),
        ({"lrs": ()}, "at least one"),
        ({"lrs": (1e-3, -1.0)}, "positive"),
        ({"lrs": None, "start_lr": math.nan}, "positive learning rate"),
    ],
)
def test_wrong_requests_are_refused(tmp_path, instant, changes, match):
    with pytest.raises(RequestError, match=match):
        tiny.tiny_sweep(tmp_path, **changes)
    assert instant == []


def test_an_engine_that_had_no_room_is_told(tmp_path):
    engine = SimpleNamespace(room=False, notes=[])
    with pytest.raises(HessianLRError, match="6 runs of lora not made: it had no room"):
        tiny.tiny_sweep(tmp_path, engine=engine)


def test_a_search_brackets_the_best_with_every_seed_at_each_learning_rate(tmp_path, instant):
    result = tiny.tiny_sweep(tmp_path, lrs=None, start_lr=2e-2)
    groups = complete_runs(result.runs)
    best = min(groups, key=lambda lr: mean_final_loss(groups[lr]))
    assert best == pytest.approx(1e-3)
    assert not result.censored
    for neighbour in (best * 10**0.25, best / 10**0.25):
        assert any(math.isclose(lr, neighbour) for lr in groups)
    assert Counter(run.lr for run in result.runs) == dict.fromkeys(groups, len(tiny.SEEDS))
    assert len(instant) == len(set(instant)) == len(result.runs)


def test_searches_from_different_starts_share_their_runs(tmp_path, instant):
    tiny.tiny_sweep(tmp_path, lrs=None, start_lr=1.1e-3)
    instant.clear()
    tiny.tiny_sweep(tmp_path, lrs=None, start_lr=1e-4)
    assert {round(4 * math.log10(lr)) for lr, _ in instant} == {-18, -16}


@pytest.mark.parametrize(
    ("lrs", "censored"), [((1e-4, 1e-3, 1e-2), False), ((1e-3, 1e-2), True), ((1e-3,), True)]
)
def test_a_best_at_the_edge_is_censored(tmp_path, instant, lrs, censored):
    assert tiny.tiny_sweep(tmp_path, lrs=lrs).censored is censored


def test_learning_rates_given_twice_or_unordered_run_once_in_order(tmp_path, instant):
    result = tiny.tiny_sweep(tmp_path, lrs=(1e-2, 1e-3, 1e-2), seeds=(5,))
    assert instant == [(1e-3, 5), (1e-2, 5)]
    assert [run.lr for run in result.runs] == [1e-3, 1e-2]


def test_progress_tells_what_is_done_planned_and_at_hand(tmp_path, instant):
    calls = []
    tiny.tiny_sweep(tmp_path, lrs=(1e-3, 1e-2), seeds=(0,), progress=lambda *now: calls.append(now))
    assert calls == [(0, 2, 1e-3, None), (1, 2, 1e-2, 1.0), (2, 2, 1e-2, pytest.approx(1.3))]


def test_a_mean_over_a_diverged_run_is_infinite():
    good = RunResult("a", tiny.SETTING, 1e-3, 2.0, 1.0, 3, False, 1.0, 1)
    worse = RunResult("b", tiny.SETTING, 1e-3, 2.0, 2.5, 3, True, 1.0, 1)
    lost = RunResult("c", tiny.SETTING, 1e-3, 2.0, None, 3, True, 1.0, 1)
    assert mean_final_loss([good, good]) == 1.0
    assert mean_final_loss([good, worse]) == mean_final_loss([good, lost]) == math.inf


def test_a_sweep_survives_json(tmp_path, instant):
    result = tiny.tiny_sweep(tmp_path)
    result.write(tmp_path / "sweep.json")
    assert Sweep.read(tmp_path / "sweep.json") == result


def test_grid_learning_rates_are_exact_keys():
    assert all(plan.nearest_point(plan.learning_rate(k)) == k for k in range(plan.LOWEST, plan.HIGHEST + 1))
