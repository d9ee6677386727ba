"""``hessian-lr sweep``: from a YAML file to a table, whatever happens on the way."""

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_text import save, sums, tiny_llama, write_rows

from hessian_lr import cli, results
from hessian_lr.cli import main
from hessian_lr.errors import HessianLRError
from hessian_lr.sweep import engine
from hessian_lr.validated import read_validated

ROOT = Path(cli.__file__).parents[1]
# A process that forks the same command line again and again: a start of its own would cost each one seconds.
PARENT = """
import os, sys, torch
from hessian_lr.cli import main
torch.set_num_threads(1)  # as here: the number of threads decides the last digits
main([*sys.argv[1:], "--dry-run"])  # imports whatever is needed, and leaves nothing
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(main(sys.argv[1:]))
    print("child", child, flush=True)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LRS = [1e-3, 1e-2, 1e-1]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, data, and the file of a small sweep."""
    root = tmp_path_factory.mktemp("sweep")
    save(tiny_llama(initializer_range=0.2), root / "model")
    write_rows(root / "rows.jsonl", sums(6))
    (root / "small.yaml").write_text(text(root, method=["lora", "pissa"], lr=LRS, seed=[0, 1]))
    return root


def text(root, **changes):
    common = {
        "model": str(root / "model"),
        "data": str(root / "rows.jsonl"),
        "rank": 2,
        "steps": 4,
        "device": "cpu",
        "dtype": "float32",
    }
    return yaml.safe_dump(common | changes)


def run_json(capsys, *arguments):
    capsys.readouterr()
    status = main(["sweep", *map(str, arguments), "--json", "-"])
    return status, json.loads(capsys.readouterr().out)


def runs(out):
    """What each run's file says, but for the time it took."""
    found = {}
    for path in (out / "runs").glob("*.json"):
        found[path.name] = json.loads(path.read_text())
        for name in ("seconds", "sha256"):  # the checksum is over the seconds too
            found[path.name].pop(name, None)
    return found


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The small sweep's folder, made without interruption."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["sweep", str(folder / "small.yaml"), "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("a run was trained again")

    monkeypatch.setattr(engine, "train_once", refuse)


def test_killed_again_and_again_it_ends_as_if_it_had_not_been(folder, whole, tmp_path):
    out, draw, total = tmp_path / "out", random.Random(5), 12
    command = ["sweep", str(folder / "small.yaml"), "--out", str(out), "--quiet"]
    # What a killed training leaves in the system's temporary folder stays in the test's.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def told():
        """The next number that the parent prints, among what the command says."""
        return next(int(line.split()[1]) for line in parent.stdout if line.startswith("child "))

    def begin():
        print(file=parent.stdin, flush=True)
        return told()

    kept: dict[Path, tuple[int, bytes]] = {}
    with parent:
        for _ in range(3):
            child = begin()
            # At any point of a run: beginning with the moment that another one is there.
            while len(list((out / "runs").glob("*.json"))) <= len(kept) and psutil.pid_exists(child):
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.8))
            os.kill(child, signal.SIGKILL)
            status = told()
            found = {
                path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (out / "runs").glob("*.json")
            }
            assert {path: found[path] for path in kept} == kept, "a finished run was made again"
            assert status == -signal.SIGKILL and len(kept) < len(found) < total
            assert all(json.loads(content) for _, content in found.values()), "half a file was left"
            kept = found
        begin()
        assert told() == 0
    for path, (written, content) in kept.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (written, content)
    assert runs(out) == runs(whole) and len(runs(out)) == total
    ours, theirs = (json.loads((one / "sweep.json").read_text()) for one in (out, whole))
    for row in (*ours["results"], *theirs["results"]):
        del row["sweep_seconds"]
        for run in row["runs"]:
            del run["seconds"]
    assert ours == theirs


def test_the_documents_have_every_run_and_the_best_learning_rates(whole):
    found = json.loads((whole / "sweep.json").read_text())
    assert found["schema"] == 1 and found["varying"] == ["method"]
    assert found["versions"] == results.versions()
    assert [row["setting"]["method"] for row in found["results"]] == ["lora", "pissa"]
    for row in found["results"]:
        assert row["status"] == "complete" and row["missing"] == [] and row["seeds"] == [0, 1]
        assert [(run["lr"], run["seed"]) for run in row["runs"]] == [(lr, s) for lr in LRS for s in (0, 1)]
        means = {lr: sum(run["final_loss"] for run in row["runs"] if run["lr"] == lr) / 2 for lr in LRS}
        assert row["best_loss"] == pytest.approx(min(means.values()))
        best = min(means, key=means.get)
        assert row["censored"] == (best != LRS[1])
        if row["censored"]:
            assert row["best_lr"] == best
        else:
            # The vertex of the parabola through three points that lie a decade apart.
            low, middle, high = means.values()
            vertex = math.log10(best) + (low - high) / (2 * (low - 2 * middle + high))
            assert row["best_lr"] == pytest.approx(10**vertex)
    with open(whole / "sweep.csv", newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == 12
    by_key = {run["key"]: (row, run) for row in found["results"] for run in row["runs"]}
    for line in lines:
        row, run = by_key[line["key"]]
        assert float(line["final_loss"]) == run["final_loss"] and float(line["lr"]) == run["lr"]
        assert (line["method"], line["seed"]) == (row["setting"]["method"], str(run["seed"]))
        assert float(line["best_lr"]) == row["best_lr"] and line["steps"] == line["steps_done"] == "4"


def test_a_dry_run_counts_costs_and_leaves_nothing(capsys, folder, tmp_path, no_training):
    out = tmp_path / "out"
    assert main(["sweep", str(folder / "small.yaml"), "--out", str(out), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("12 runs (2 settings); 12 runs to make, about ")
    assert said.endswith("here. Cost from steps timed just now for 1 shape.")
    assert not out.exists()
    status, found = run_json(capsys, folder / "small.yaml", "--out", out, "--dry-run", "--shard", "1/5")
    assert status == 0 and found["plan"]["runs"] == [12, 12] and found["plan"]["to_go"] == [4, 4]
    assert 0 < found["plan"]["seconds"][0] < 60


def test_a_finished_sweep_trains_nothing_and_says_what_its_runs_cost(capsys, folder, whole, no_training):
    assert main(["sweep", str(folder / "small.yaml"), "--out", str(whole)]) == 0
    said = capsys.readouterr()
    assert "12 runs (2 settings), 12 of them there already; 0 runs to make" in said.err
    (folder / "more.yaml").write_text(text(folder, method="lora", lr=[*LRS, 0.5], seed=[0, 1]))
    assert main(["sweep", str(folder / "more.yaml"), "--out", str(whole), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "6 of them there already; 2 runs to make" in said
    assert "Cost from 6 finished runs of the same kind." in said


def test_losses_on_different_data_are_not_compared(capsys, folder, tmp_path):
    names = [str(folder / "rows.jsonl"), str(tmp_path / "other.jsonl")]
    write_rows(Path(names[1]), sums(5))
    (tmp_path / "two.yaml").write_text(text(folder, method="lora", data=names, lr=[1e-1], steps=2))
    assert main(["sweep", str(tmp_path / "two.yaml"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err.splitlines()
    for name in names:
        (line,) = (line for line in said if line.startswith(f"data {name}: "))
        assert "held-out loss" in line


def test_runs_that_are_no_longer_asked_for_are_told_as_that(capsys, folder, tmp_path):
    for name, lrs, seeds in (("more", [1e-2, 1e-1], [0, 1]), ("less", [1e-1], [0])):
        (tmp_path / f"{name}.yaml").write_text(text(folder, method="lora", lr=lrs, seed=seeds, steps=2))
        assert main(["sweep", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert (
        f"3 more in {tmp_path / 'runs'}: runs of settings, learning rates or seeds that are not asked" in said
    )


def test_a_table_that_takes_the_place_of_anothers_says_so_and_both_can_be_had_again(capsys, folder, tmp_path):
    def sweep(name, *more, **changes):
        (tmp_path / f"{name}.yaml").write_text(text(folder, method="lora", **changes))
        status, found = run_json(capsys, tmp_path / f"{name}.yaml", "--out", tmp_path / "out", *more)
        assert status == 0
        return found["results"], [note for note in found["notes"] if "was a table with" in note]

    first, said = sweep("first", lr=LRS[:2], steps=2)
    assert said == []
    # What is only extended loses nothing, be it made or not.
    assert sweep("wider", "--limit", 0, lr=LRS, rank=[2, 4], steps=2)[1] == []
    _, (note,) = sweep("other", "--limit", 0, lr=LRS[:2], steps=3)
    table, other = tmp_path / "out" / "sweep.json", tmp_path / "other.yaml"
    assert note.startswith(f"{table} was a table with 2 runs that {other} does not ask for: their files stay")
    again, said = sweep("first", "--limit", 0, lr=LRS[:2], steps=2)
    assert again == first and said == []


@pytest.mark.parametrize("limit", ["0", "1"])
def test_data_are_not_suspected_where_runs_are_missing(capsys, folder, tmp_path, limit):
    """One run of two seeds has no best learning rate either."""
    assert main(["sweep", str(folder / "small.yaml"), "--out", str(tmp_path), "--limit", limit]) == 0
    said = capsys.readouterr()
    assert "runs missing: " in said.err and "check the data" not in said.err
    assert "none learned" not in said.out and "failed" not in said.out


def test_shards_are_merged_by_the_same_command_which_names_what_is_missing(capsys, folder, whole, tmp_path):
    for share in ("1/3", "3/3"):
        main(["sweep", str(folder / "small.yaml"), "--out", str(tmp_path), "--shard", share, "--quiet"])
    capsys.readouterr()
    assert len(runs(tmp_path)) == 8
    (tmp_path / "runs" / "copy.json").write_bytes(next((tmp_path / "runs").glob("*.json")).read_bytes())
    assert main(["sweep", str(folder / "small.yaml"), "--out", str(tmp_path), "--limit", "0"]) == 0
    said = capsys.readouterr()
    assert (
        "4 runs missing: " in said.err
        and "(seed 0, 1)" in said.err
        and "copy.json is a copy of run" in said.err
    )
    found = json.loads((tmp_path / "sweep.json").read_text())
    gaps = {(row["label"], one["lr"], one["seed"]) for row in found["results"] for one in row["missing"]}
    have = {(row["label"], one["lr"], one["seed"]) for row in found["results"] for one in row["runs"]}
    assert len(gaps) == 4 and len(have) == 8 and not gaps & have
    (tmp_path / "runs" / "copy.json").unlink()
    main(["sweep", str(folder / "small.yaml"), "--out", str(tmp_path), "--shard", "2/3", "--quiet"])
    assert runs(tmp_path) == runs(whole)
    assert not any(r["missing"] for r in json.loads((tmp_path / "sweep.json").read_text())["results"])


@pytest.mark.usefixtures("undrawn")
def test_validate_finds_the_runs_of_a_sweep(capsys, folder, whole, no_training):
    """So that a sweep's settings can get the curvature that `align` and `calibrate` go by."""
    arguments = ["--model", str(folder / "model"), "--data", str(folder / "rows.jsonl"), "--rank", "2"]
    arguments += [
        "--steps",
        "4",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--samples",
        "2",
        "--method",
        "lora",
    ]
    arguments += ["--lrs", ",".join(map(str, LRS)), "--seeds", "0,1", "--out", str(whole), "--quiet"]
    assert main(["validate", *arguments]) == 0
    capsys.readouterr()
    validated = json.loads((whole / "validate.json").read_text())["results"][0]
    swept = json.loads((whole / "sweep.json").read_text())["results"][0]
    assert [run["final_loss"] for run in validated["runs"]] == [run["final_loss"] for run in swept["runs"]]
    assert validated["best_lr"] == swept["best_lr"]
    (row,) = read_validated([whole / "validate.json"])
    assert row.row.best_lr == swept["best_lr"] and row.row.lambda_max is not None


def test_a_search_runs_from_a_file_and_its_limit_is_kept(capsys, folder, tmp_path):
    (tmp_path / "auto.yaml").write_text(text(folder, lr={"auto": 3e-2}, steps=2))
    status, found = run_json(capsys, tmp_path / "auto.yaml", "--out", tmp_path, "--limit", "2", "--quiet")
    (row,) = found["results"]
    assert status == 0 and row["status"] == "partial" and row["lrs"] == "auto"
    assert len(row["runs"]) == 2 and len(row["missing"]) == 1
    status, found = run_json(capsys, tmp_path / "auto.yaml", "--out", tmp_path, "--quiet")
    (row,) = found["results"]
    assert status == 0 and row["status"] == "complete" and len(row["runs"]) >= 5
    assert all(
        4 * math.log10(run["lr"]) == pytest.approx(round(4 * math.log10(run["lr"]))) for run in row["runs"]
    )


def test_a_failed_setting_is_status_1_and_keeps_no_other_from_its_result(
    capsys, folder, tmp_path, monkeypatch
):
    real = engine.train_once

    def fails(setting, *rest):
        if setting.method == "pissa":
            raise HessianLRError("the singular values did not converge")
        return real(setting, *rest)

    monkeypatch.setattr(engine, "train_once", fails)
    (tmp_path / "two.yaml").write_text(text(folder, method=["pissa", "lora"], lr=1e-2, steps=2))
    assert main(["sweep", str(tmp_path / "two.yaml"), "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "pissa: failed: the singular values did not converge" in said.err
    rows = json.loads((tmp_path / "sweep.json").read_text())["results"]
    assert [row["status"] for row in rows] == ["failed", "complete"]
    assert rows[0]["best_lr"] is None and rows[0]["runs"] == []


def test_the_table_is_plain_and_fits_80_columns(capsys, folder, tmp_path):
    (tmp_path / "wide.yaml").write_text(
        text(
            folder,
            method=["lora", "rslora"],
            target_modules=["all-linear", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"],
            alpha=["rank", 32],
            max_length=[16, 32],
            lr=[1e-3, 1e-2],
            steps=2,
        )
    )
    assert main(["sweep", str(tmp_path / "wide.yaml"), "--out", str(tmp_path), "--limit", "3"]) == 0
    said = capsys.readouterr()
    assert "down_proj" in said.out and "\x1b" not in said.out and "…\n" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80


WRONG = {
    "file": (["none.yaml"], "cannot read none.yaml"),
    "shard 0": (["{small}", "--shard", "0/3"], "--shard takes a share and their number"),
    "shard of": (["{small}", "--shard", "4/3"], "not '4/3'"),
    "limit": (["{small}", "--limit", "-1"], "--limit takes a whole number of at least 0"),
    "out": (["{small}", "--out", "{small}"], "is a file, not a folder"),
    "typo": (["{typo}"], "typo.yaml, line 3: unknown key 'lrs'. Did you mean 'lr'?"),
    "data": (["{data}"], "no_such.jsonl"),
    "steps": (["{steps}"], "line 8, steps: steps must be a whole number of at least 2 (the first "),
    "rank": (
        ["{rank}"],
        "1 of 2 settings cannot be run, exclude them: lora at rank 500: rank 500 is larger",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_line_and_status_2(capsys, folder, tmp_path, monkeypatch, no_training, name):
    monkeypatch.chdir(tmp_path)
    files = tmp_path.parent / f"{tmp_path.name}-files"
    files.mkdir()
    (files / "typo.yaml").write_text("rank: 8\nsteps: 3\nlrs: 1e-3\n")
    (files / "data.yaml").write_text(text(folder, data="no_such.jsonl"))
    (files / "steps.yaml").write_text(text(folder, steps=[1, 2], lr=1e-3))
    (files / "rank.yaml").write_text(text(folder, rank=[2, 500], lr=1e-3))
    names = {
        "small": folder / "small.yaml",
        **{one: files / f"{one}.yaml" for one in ("typo", "data", "steps", "rank")},
    }
    arguments, message = WRONG[name]
    assert main(["sweep", *(one.format(**names) for one in arguments)]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("hessian-lr: error: ") and message in line and said.out == ""
    assert list(tmp_path.iterdir()) == [], "nothing may be half-done"


def test_ctrl_c_says_what_is_kept(capsys, folder, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "train_once", interrupt)
    assert main(["sweep", str(folder / "small.yaml"), "--out", str(tmp_path), "--quiet"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
