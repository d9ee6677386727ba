"""Shares' folders in one: every run once; gaps, doubles, damage and strangers named; nothing overwritten."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_sweep as tiny

from hessian_lr.errors import RequestError
from hessian_lr.sweep import RunResult, engine, run_key
from hessian_lr.sweep.engine import Local
from hessian_lr.sweep.grid import share
from hessian_lr.sweep.merge import merge
from hessian_lr.sweep.schedule import make
from hessian_lr.sweep.source import assign
from hessian_lr.sweep.wanted import Wanted

A, B = replace(tiny.SETTING, rank=2), replace(tiny.SETTING, rank=4)
GRID = Wanted(A, (0, 1), (1e-4, 1e-3, 1e-2), 1e-3)
SEARCH = Wanted(B, (0,), None, 1e-4)
LOADED, DATA = tiny.tiny_model(), tiny.tiny_data()
SOURCE = SimpleNamespace(model=lambda _: LOADED, data=lambda _: DATA)


@pytest.fixture(autouse=True)
def instant(monkeypatch):
    """Replaces training by a bowl around 1e-3, which takes longer each time."""
    count = iter(range(1, 10_000))

    def fake(setting, lr, loaded, data, _initial):
        final = 1.0 + 0.3 * (math.log10(lr) + 3.0) ** 2
        key = run_key(setting, lr, data.digest, loaded.fingerprint)
        return RunResult(key, setting, lr, 2.0, final, setting.steps, final > 2.0, float(next(count)), 10)

    monkeypatch.setattr(engine, "train_once", fake)


def works(folder, *wanted):
    return assign(wanted or (GRID, SEARCH), SOURCE, folder)[0]


def made(out, *wanted):
    """A folder as ``sweep --out`` leaves it."""
    assert make(works(out / "runs", *wanted), Local(SOURCE)) == {}
    return out


def shares(tmp_path, count=3):
    return [made(tmp_path / f"share{n}", *share((GRID, SEARCH), n, count)) for n in range(1, count + 1)]


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "all" / "runs"
    folder.mkdir(parents=True)
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def missing(folder):
    return [one for work in works(folder) for one in work.standing().missing]


def test_shares_from_separate_folders_are_the_whole(tmp_path, target):
    folders = shares(tmp_path)
    notes = merge(works(target), folders, target)
    assert notes == () and missing(target) == []
    assert files(target) == {name: data for one in folders for name, data in files(one / "runs").items()}


def test_a_gap_is_named_to_the_run_and_a_second_merge_fills_it(tmp_path, target):
    first, *rest = shares(tmp_path)
    gone = {(one, lr) for work in works(first / "runs") for one, lr in work.standing().missing}
    merge(works(target), rest, target)
    gaps = missing(target)
    assert gaps and not gone.issuperset(gaps)
    before = files(target)
    merge(works(target), [first], target)
    assert missing(target) == [] and before.items() <= files(target).items()


def test_a_run_found_twice_with_one_result_counts_once_and_is_named(tmp_path, target):
    one, other = (made(tmp_path / name, GRID) for name in ("one", "other"))
    (note,) = merge(works(target, GRID), [one, other], target)
    assert files(target) == files(one / "runs") != files(other / "runs")  # seconds differ, results do not
    assert note.startswith(
        f"6 runs of {other / 'runs'} were found before with the same result and count once: "
    )
    assert all(Path(name).stem in note for name in files(target))
    for path in sorted((other / "runs").iterdir())[1:]:
        path.unlink()
    (note,) = merge(works(target, GRID), [other], target)
    assert note.startswith(
        f"1 run of {other / 'runs'} was found before with the same result and counts once: "
    )


def test_a_run_found_twice_with_other_results_is_refused_and_nothing_is_written(tmp_path, target):
    one, other = (made(tmp_path / name, GRID) for name in ("one", "other"))
    victim = sorted((other / "runs").iterdir())[2]
    run = RunResult.read(victim)
    replace(run, final_loss=run.final_loss + 1e-9).write(victim)
    with pytest.raises(RequestError, match=r"1 run came out differently .* nothing was merged") as caught:
        merge(works(target, GRID), [one, other], target)
    assert str(victim) in str(caught.value) and str(one / "runs" / victim.name) in str(caught.value)
    assert f"final_loss {run.final_loss} and {run.final_loss + 1e-9}" in str(caught.value)
    assert files(target) == {}


def test_what_the_target_has_stays_and_a_contradiction_to_it_is_refused(tmp_path, target):
    made(target.parent, GRID)
    before = files(target)
    other = made(tmp_path / "other")
    merge(works(target), [other], target)
    assert before.items() <= files(target).items() and missing(target) == []
    victim = sorted((other / "runs").iterdir())[0]
    replace(RunResult.read(victim), steps=1).write(victim)
    before = files(target)
    with pytest.raises(RequestError, match="steps 12 and 1"):
        merge(works(target), [other], target)
    assert files(target) == before


def test_a_damaged_file_is_left_out_and_named_and_another_share_may_have_the_run(tmp_path, target):
    one, other = (made(tmp_path / name, GRID) for name in ("one", "other"))
    victim = sorted((one / "runs").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-40])
    notes = merge(works(target, GRID), [one], target)
    assert any(note.startswith(f"{victim} is damaged and was left out") for note in notes)
    assert len(works(target, GRID)[0].standing().missing) == 1
    merge(works(target, GRID), [other], target)
    assert works(target, GRID)[0].standing().missing == ()


def test_a_damaged_file_in_the_target_is_not_overwritten(tmp_path, target):
    one = made(tmp_path / "one", GRID)
    name = sorted(files(one / "runs"))[0]
    (target / name).write_text("{")
    with pytest.raises(RequestError, match=f"{name} is damaged, and nothing is overwritten; delete it"):
        merge(works(target, GRID), [one], target)
    assert files(target) == {name: b"{"}


def test_foreign_and_misnamed_files_are_named_and_left_alone(tmp_path, target):
    one = made(tmp_path / "one", GRID, Wanted(replace(A, steps=5), (0,), (1e-3,), 1e-3))
    run = next((one / "runs").iterdir())
    shutil.copy(run, one / "runs" / "copy.json")
    (one / "runs" / "notes.txt").write_text("mine")
    notes = merge(works(target, GRID), [one], target)
    assert len(files(target)) == 6
    (foreign,) = (note for note in notes if "something else" in note)
    assert "2 files" in foreign and "notes.txt" in foreign
    assert any("copy.json holds run " in note and "under another name" in note for note in notes)


def test_a_file_whose_content_is_not_the_run_of_its_key_is_left_out(tmp_path, target):
    one = made(tmp_path / "one", GRID)
    victim = sorted((one / "runs").iterdir())[0]
    replace(RunResult.read(victim), lr=0.5).write(victim)
    (note,) = merge(works(target, GRID), [one], target)
    assert str(victim) in note and "does not describe the run of its name (lr)" in note
    assert len(files(target)) == 5


def test_runs_in_another_precision_are_told_as_such(tmp_path, target):
    one = made(tmp_path / "one", replace(GRID, setting=replace(A, dtype="bfloat16")))
    notes = merge(works(target, GRID), [one], target)
    assert "this sweep's, but in bfloat16: name dtype" in notes[0]
    assert notes[1].endswith("has no run of this sweep") and files(target) == {}


@pytest.mark.parametrize("wanted", [replace(GRID, seeds=(0,)), replace(GRID, lrs=(1e-4, 1e-3))])
def test_runs_that_are_not_asked_for_are_not_told_as_of_another_precision(tmp_path, target, wanted):
    """They are in the sweep's own: naming it changes nothing."""
    (note,) = merge(works(target, wanted), [made(tmp_path / "one", GRID)], target)
    assert "of something else" in note and "precision" not in note and "dtype" not in note


def test_a_folder_that_is_not_there_is_refused(tmp_path, target):
    with pytest.raises(RequestError, match=r"there is no folder .*nowhere"):
        merge(works(target), [tmp_path / "nowhere"], target)


def test_a_folder_named_twice_counts_once(tmp_path, target):
    one = made(tmp_path / "one")
    assert merge(works(target), [one, one / "runs", one], target) == ()
    assert json.loads(next(target.iterdir()).read_text())["key"]
