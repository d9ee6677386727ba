"""Many settings' runs in one folder: made once, costed, shared; failures and strangers told."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import tiny_sweep as tiny
import torch
from tolerances import COST_FACTOR

from hessian_lr.commands import sweep_words
from hessian_lr.errors import HessianLRError, RankError, RequestError
from hessian_lr.sweep import RunResult, cost, engine, plan, run_key
from hessian_lr.sweep.engine import Local
from hessian_lr.sweep.grid import share
from hessian_lr.sweep.schedule import by_model, make
from hessian_lr.sweep.source import assign, strangers
from hessian_lr.sweep.wanted import Wanted

A, B = replace(tiny.SETTING, rank=2), replace(tiny.SETTING, rank=4)
WANTED = (
    Wanted(A, (0, 1), (1e-4, 1e-3, 1e-2), 1e-3),
    Wanted(replace(A, model="other"), (0,), (1e-4, 1e-3), 1e-3),
    Wanted(B, (0,), None, 1e-4),
)
# The search for the bowl's bottom, 1e-3, from 1e-4: three points, two beyond, one on either side.
SEARCHED = 7
TOTAL = 6 + 2 + SEARCHED


class TinySource:
    """Two models that exist in memory only; counts how often one is asked for after the other."""

    def __init__(self):
        self.models = {"tiny": tiny.tiny_model(), "other": tiny.tiny_model(weights_seed=1)}
        self.loads = []

    def model(self, setting):
        if self.loads[-1:] != [setting.model]:
            self.loads.append(setting.model)
        return self.models[setting.model]

    def data(self, _setting):
        return tiny.tiny_data()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def instant(monkeypatch):
    """Replaces training by a known loss, a bowl around 1e-3; counts the trainings."""
    trained = Counter()

    def fake(setting, lr, loaded, data, initial_loss):
        trained[setting.model, setting.rank, setting.seed, round(math.log10(lr), 3)] += 1
        assert initial_loss in (None, 2.0)
        final = 1.0 + 0.3 * (math.log10(lr) + 3.0) ** 2
        key = run_key(setting, lr, data.digest, loaded.fingerprint)
        return RunResult(key, setting, lr, 2.0, final, setting.steps, final > 2.0, 4.0, 10)

    monkeypatch.setattr(engine, "train_once", fake)
    return trained


def assigned(folder, wanted=WANTED):
    source = TinySource()
    return assign(wanted, source, folder)[0], source


def test_every_run_is_made_once_and_each_model_loaded_once(tmp_path, instant):
    works, source = assigned(tmp_path)
    source.loads.clear()
    assert make(works, Local(source)) == {}
    assert len(instant) == TOTAL and set(instant.values()) == {1}
    assert source.loads == ["tiny", "other"]
    assert len(list(tmp_path.glob("*.json"))) == TOTAL
    assert not any(one.standing().missing for one in works)
    fresh, source = assigned(tmp_path)
    assert make(fresh, Local(source)) == {} and len(instant) == TOTAL


def test_a_limit_stops_anywhere_and_the_next_call_goes_on(tmp_path, instant):
    sizes = []
    for _ in range(5):
        works, source = assigned(tmp_path)
        before = sum(instant.values())
        make(works, Local(source), limit=4)
        sizes.append(sum(instant.values()) - before)
    assert sizes == [4, 4, 4, TOTAL - 12, 0] and set(instant.values()) == {1}


def test_limit_0_makes_nothing(tmp_path, instant):
    works, source = assigned(tmp_path)
    make(works, Local(source), limit=0)
    assert not instant


def test_shares_make_the_whole(tmp_path, instant):
    for index in (1, 2, 3):
        works, source = assigned(tmp_path, share(WANTED, index, 3))
        make(works, Local(source))
    assert len(instant) == TOTAL and set(instant.values()) == {1}
    whole, _ = assigned(tmp_path)
    assert not any(one.standing().missing for one in whole)


def test_a_failed_run_ends_its_setting_and_no_other_and_is_tried_again(tmp_path, monkeypatch, instant):
    real = engine.train_once

    def fails(setting, lr, *rest):
        if setting.rank == 2 and setting.model == "tiny" and lr == 1e-3:
            raise HessianLRError("out of memory")
        return real(setting, lr, *rest)

    monkeypatch.setattr(engine, "train_once", fails)
    works, source = assigned(tmp_path)
    failed = make(works, Local(source))
    assert {setting: str(error) for setting, error in failed.items()} == {A: "out of memory"}
    assert sum(instant.values()) == 2 + 2 + SEARCHED
    monkeypatch.setattr(engine, "train_once", real)
    assert make(works, Local(source)) == {} and len(instant) == TOTAL and set(instant.values()) == {1}


@pytest.mark.parametrize("kind", [RuntimeError, torch.linalg.LinAlgError])
def test_an_error_of_torchs_is_its_settings_failure_too(tmp_path, monkeypatch, instant, kind):
    real = engine.train_once

    def fails(setting, *rest):
        if setting.rank == 2 and setting.model == "tiny":
            raise kind("linalg.svd: did not converge")
        return real(setting, *rest)

    monkeypatch.setattr(engine, "train_once", fails)
    works, source = assigned(tmp_path)
    (failure,) = make(works, Local(source)).values()
    assert str(failure) == f"{kind.__name__}: linalg.svd: did not converge"
    assert isinstance(failure, HessianLRError) and isinstance(failure.__cause__, kind)
    assert sum(instant.values()) == 2 + SEARCHED


@pytest.mark.parametrize("kind", [TypeError, RankError])
def test_a_defect_and_a_lost_rank_end_it_all(tmp_path, monkeypatch, instant, kind):
    def fails(*_):
        raise kind("gone")

    monkeypatch.setattr(engine, "train_once", fails)
    works, source = assigned(tmp_path)
    with pytest.raises(kind, match="gone"):
        make(works, Local(source))


def test_a_folder_that_cannot_be_written_ends_it_all(tmp_path, instant):
    (tmp_path / "file").write_text("in the way")
    works, source = assigned(tmp_path / "file" / "runs")
    with pytest.raises(HessianLRError, match="cannot write"):
        make(works, Local(source))
    assert sum(instant.values()) == 1


def test_settings_that_do_not_fit_their_model_are_told_together_before_any_work(tmp_path, instant):
    wide = [Wanted(replace(A, rank=rank), (0,), (1e-3,), 1e-3) for rank in (2, 100, 200)]
    with pytest.raises(RequestError, match=r"2 of 3 settings cannot be run, .*rank 100 is .*rank 200 is "):
        assigned(tmp_path, wide)
    large = [Wanted(replace(A, batch_size=size), (0,), (1e-3,), 1e-3) for size in (40, 41)]
    with pytest.raises(RequestError, match=r"1 of 2 settings cannot be run, .*a batch of 41 .* 40 training"):
        assigned(tmp_path, large)


def test_progress_tells_what_is_made_and_left(tmp_path, instant):
    told = []
    works, source = assigned(tmp_path, WANTED[:2])
    make(works, Local(source), report=lambda *now: told.append(now[:2]))
    assert told == [(done, 8) for done in range(8)]


def test_copies_and_foreign_runs_are_told_apart(tmp_path, instant):
    works, source = assigned(tmp_path, WANTED[1:])
    make(works, Local(source))
    first, second = (works[0].finished.path(WANTED[1].setting, lr) for lr in WANTED[1].lrs)
    shutil.copy(first, tmp_path / "copy.json")
    second.rename(tmp_path / "renamed.json")
    (tmp_path / "broken.json").write_text("{")
    other, _ = assigned(tmp_path, WANTED[1:2])
    fresh, _ = assigned(tmp_path, WANTED[1:])
    copies, others = strangers(fresh, tmp_path)
    assert others == 0 and len(copies) == 2
    assert f"copy.json is a copy of run {first.stem}" in copies[0]
    assert f"renamed.json is a copy of run {second.stem}" in copies[1]
    assert strangers(other, tmp_path)[1] >= SEARCHED - 2


def test_by_model_keeps_the_order_but_for_models():
    made = [replace(A, model=model, rank=rank) for rank, model in enumerate("abacb", 1)]
    assert [made[place].model for place in by_model(made)] == list("aabbc")
    assert by_model(made) == [0, 2, 1, 4, 3]


def test_finished_runs_tell_the_cost_of_their_like(tmp_path, instant):
    works, source = assigned(tmp_path)
    make(works, Local(source), limit=6)
    runs = [run for one in works for run in one.standing().runs]
    found = cost.estimate([works[0], works[2]], runs, source)
    # A is complete; B is of the same kind but for its rank: 5 to 12 learning rates of 4 seconds.
    assert (found.timed, found.finished, found.notes) == (0, 6, ())
    assert found.runs == (plan.FEWEST_POINTS, plan.MAX_POINTS)
    assert found.seconds == (4.0 * plan.FEWEST_POINTS, 4.0 * plan.MAX_POINTS)
    assert cost.estimate(works, runs, source, limit=3).runs == (3, 3)
    at_the_limit, _ = assigned(tmp_path, [replace(WANTED[2], start_lr=100.0)])
    assert cost.estimate(at_the_limit, runs, source).runs == (3, plan.MAX_POINTS)


def test_timed_steps_tell_the_cost_of_runs_like_those(tmp_path):
    source = TinySource()
    long = Wanted(replace(B, steps=60), (0,), (1e-3, 1e-2), 1e-3)
    works, _ = assign([long], source, tmp_path)
    make(assign([Wanted(A, (0,), (1e-3,), 1e-3)], source, tmp_path)[0], Local(source))  # imports and the like
    found = cost.estimate(works, [], source)
    assert (found.runs, found.timed, found.finished) == ((2, 2), 1, 0)
    make(works, Local(source))
    taken = sum(run.seconds for run in works[0].standing().runs)
    assert taken / COST_FACTOR < found.seconds[0] < taken * COST_FACTOR
    assert found.seconds[0] == found.seconds[1]


def test_a_longer_run_is_told_to_take_longer_without_new_steps(tmp_path):
    source = TinySource()
    wanted = [
        Wanted(replace(B, steps=steps, method=method), (0,), (1e-3,), 1e-3)
        for steps in (10, 1000)
        for method in ("lora", "pissa")
    ]
    works, _ = assign(wanted, source, tmp_path)
    clock, notes = cost._Clock(), []
    rates = [clock.rate(one.wanted.setting, source, notes)[0] for one in works]
    assert len(clock.steps) == 1 and len(clock.builds) == 2 and notes == []
    ((_, step),) = clock.steps.values()
    assert rates[2] - rates[0] == pytest.approx(990 * step)
    assert rates[3] - rates[1] == pytest.approx(990 * step)


def test_a_shape_that_cannot_be_timed_is_told_and_does_not_end_the_plan(tmp_path, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("out of\nmemory")

    works, source = assigned(tmp_path, WANTED[:1])
    monkeypatch.setattr("hessian_lr.methods.adapted", exhausted)
    found = cost.estimate(works, [], source)
    assert found.runs == (6, 6) and found.seconds == (0.0, 0.0)
    assert found.notes == (
        "lora with batch size 4 could not be timed and is left out of the cost: out of memory",
    )


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3000, "50 min"),
        (3599, "1 h 0 min"),
        (11400, "3 h 10 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_are_told_in_two_units(seconds, told):
    assert sweep_words.duration(seconds) == told


def test_damaged_runs_are_made_again_and_named(tmp_path, instant):
    works, source = assigned(tmp_path, WANTED[:1])
    make(works, Local(source))
    victim = sorted(tmp_path.glob("*.json"))[2]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:50])
    fresh, source = assigned(tmp_path, WANTED[:1])
    make(fresh, Local(source))
    assert json.loads(victim.read_bytes()) == json.loads(whole)
    assert sorted(instant.values()) == [1] * 5 + [2]
    (note,) = fresh[0].finished.notes
    assert str(victim) in note and "damaged" in note
