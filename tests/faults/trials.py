"""The faults: each is tried so many times, and what must hold after it is asserted each time.

The two promises: no completed run is lost or counted twice, and no number is reported from a failed
computation. A trial that ends counted what happened; one that finds a promise broken raises.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hessian_lr.records import read_json

from .damage import damaged_files, damaged_states, damaged_weights
from .harness import Ended, answers, leftovers, readable, runs, save_model
from .undisturbed import NUMBERS, PROBE, Undisturbed

Outcomes = Counter[str]
# Moments around writes (see ``server.die_at_write``) that a whole command has at least.
MOMENTS = {"predict": 30, "validate": 20, "calibrate": 3, PROBE: 30}
KILLED = -signal.SIGKILL


def killed(name: str) -> Callable[[Undisturbed, int], Outcomes]:
    """kill -9, half of them at a random time, half at a random moment around a write.

    Up to three in a row hit the same folder, each run going on from what the one before it left.
    """

    def trial(whole: Undisturbed, count: int) -> Outcomes:
        draw, outcomes = random.Random(f"kill {name}"), Counter[str]()
        while outcomes["killed"] < count:
            with whole.fresh(name) as folder:
                chain, went_on = min(draw.choice((1, 1, 2, 3)), count - outcomes["killed"]), False
                for _ in range(chain):
                    before = runs(folder)
                    how: dict[str, Any] = {"after": draw.uniform(0, whole.seconds[name])}
                    if draw.random() < 0.5:
                        how = {"die_at_write": draw.randrange(MOMENTS[name])}
                    ended = whole.server.run(whole.command(name, folder), keep_state_always=True, **how)
                    assert ended.status in (0, KILLED), ended
                    outcomes["killed" if ended.status == KILLED else "ended before"] += 1
                    readable(folder)
                    now = runs(folder)
                    assert all(now[run] == content for run, content in before.items())
                    outcomes["runs kept"] += len(now)
                outcomes["left a temporary file"] += bool(leftovers(folder))
                went_on = any((folder / where).exists() for where in ("state", "checkpoints"))
                ended = whole.completes(name, folder)
                outcomes["completed with the same answer"] += 1
                outcomes["went on from Lanczos's state"] += went_on and "went on after" in ended.stderr
        return outcomes

    return trial


def terminated(whole: Undisturbed, count: int) -> Outcomes:
    """SIGTERM: it says so, leaves no temporary file, and the same command goes on."""
    draw, outcomes = random.Random("terminate"), Counter[str]()
    while outcomes["terminated"] < count:
        name = draw.choice(("predict", "validate"))
        with whole.fresh(name) as folder:
            after = draw.uniform(0.1, 0.9) * whole.seconds[name]
            ended = whole.server.run(whole.command(name, folder), after=after, send=signal.SIGTERM)
            if ended.status == 0:
                continue
            assert ended.status == 128 + signal.SIGTERM and ended.stderr.count("\n") == 1, ended
            assert not leftovers(folder)
            outcomes["terminated"] += 1
            readable(folder)
            whole.completes(name, folder)
            outcomes["completed with the same answer"] += 1
    return outcomes


def disk_full(whole: Undisturbed, count: int) -> Outcomes:
    """No file may grow beyond a random size: one line with the file and the room, nothing earlier lost."""
    draw, outcomes = random.Random("full"), Counter[str]()
    for index in range(count):
        name = ("calibrate", "predict", "validate")[index % 3]
        with whole.fresh(name) as folder:
            limit = draw.randrange(200, 1200 if name != "validate" else 60_000)
            ended = whole.server.run(whole.command(name, folder), file_limit=limit)
            readable(folder)
            assert not leftovers(folder)
            if ended.status == 0:
                assert whole.answer(name, folder) == whole.answers[name]
                outcomes["fitted"] += 1
            else:
                assert ended.status == 1 and "cannot write" in ended.stderr and "bytes" in ended.stderr, ended
                outcomes["refused with the file and the room"] += 1
            whole.completes(name, folder)
            outcomes["completed with room"] += 1
    return outcomes


def permission_lost(whole: Undisturbed, count: int) -> Outcomes:
    """The folder may no longer be written, from a random time on."""
    draw, outcomes = random.Random("permission"), Counter[str]()
    faults = {"as_nobody": True} if os.getuid() == 0 else {}
    for _ in range(count):
        with whole.fresh("validate") as folder:
            (folder / "runs").mkdir()
            for path in (folder, folder / "runs"):
                path.chmod(0o777)
            made = whole.server.run(whole.server.validate(folder, lrs="1e-3"), **faults)
            assert made.status == 0, made
            before = runs(folder)
            assert len(before) == 1
            for path in (folder, folder / "runs"):
                path.chmod(0o555)
            ended = whole.server.run(whole.command("validate", folder), **faults)
            assert ended.status in (1, 2) and "ermission" in ended.stderr, ended
            assert runs(folder) == before and not leftovers(folder)
            outcomes["refused"] += 1
            for path in (folder, folder / "runs"):
                path.chmod(0o777)
            inner = folder / "runs"
            inner.chmod(0o555)
            ended = whole.server.run(whole.command("validate", folder), **faults)
            assert ended.status == 1 and "ermission" in ended.stderr, ended
            assert runs(folder) == before and not leftovers(folder)
            outcomes["refused where only the runs' folder is closed"] += 1
            inner.chmod(0o777)
            draw.random()
            whole.completes("validate", folder)
            outcomes["completed when it was given back"] += 1
    return outcomes


def not_finite(whole: Undisturbed, count: int) -> Outcomes:
    """NaN or infinity in a weight, a gradient, a loss: no number follows from it."""
    draw, outcomes = random.Random("nan"), Counter[str]()
    for index in range(count):
        where = ("training gradient", "weight", "gradient", "loss")[index % 4]
        value = ("nan", "inf", "-inf")[index // 4 % 3]
        with whole.fresh("not-finite") as folder:
            if where == "training gradient":
                how = {"bad_training_gradient": {"at": draw.randrange(3), "value": value}}
                shutil.copytree(whole.folder, folder / "out")
                for path in (folder / "out" / "runs").glob("*.json"):
                    path.unlink()
                command = whole.server.validate(folder / "out", lrs="1e-3,1e-1")
                ended = whole.server.run(command, **how)
                for row in read_json(folder / "out" / "validate.json")["results"]:
                    assert all(run["final_loss"] is None and run["diverged"] for run in row["runs"])
                    assert row["best_lr"] is None and row["best_loss"] is None and row["regret"] is None
                outcomes["training: every run diverged, no best learning rate"] += 1
                continue
            how, more = {}, {}
            if where == "weight":
                save_model(folder / "model", float(value))
                more = {"model": folder / "model"}
            elif where == "gradient":
                how = {"bad_gradient": {"at": draw.randrange(6), "value": value}}
            else:
                how = {"bad_loss": {"at": draw.randrange(6), "value": value}}
            ended = whole.server.run(whole.server.predict(folder, **more), **how)
            assert ended.status in (0, 1), ended
            outcomes[_no_number_from_a_failure(whole, folder, ended, where)] += 1
    return outcomes


def _no_number_from_a_failure(whole: Undisturbed, folder: Path, ended: Ended, where: str) -> str:
    path = folder / "predict.json"
    if not path.exists():
        assert ended.status == 1 and "error" in ended.stderr, ended
        return f"{where}: refused before anything was measured"
    (row,) = read_json(path)["results"]
    if row["status"] == "failed":
        assert ended.status == 1, ended
        # Where λ at initialization was measured and what came after failed, there is no learning rate.
        assert all(row[name] is None for name in NUMBERS), row
        assert "finite" in ended.stderr or "memory" in ended.stderr, ended
        return f"{where}: failed, no number"
    # One of the two measurements stands, and says that the other failed.
    expected = whole.answers["predict"]["results"][0]
    parts = ("λ at initialization: ", "sharpness in Adam's geometry: ")
    trouble = [note for note in row["notes"] if note.startswith(parts)]
    assert trouble or answers(row) == expected, row
    for name in NUMBERS:
        value = row[name]
        assert value is None or not trouble or name.startswith("lr") or value == expected[name], (name, row)
    return f"{where}: the other measurement alone, the failure told" if trouble else f"{where}: not reached"


def diverging(whole: Undisturbed, count: int) -> Outcomes:
    """Learning rates far too high: the runs say that they diverged, and none of them is the best."""
    draw, outcomes = random.Random("diverge"), Counter[str]()
    for _ in range(count):
        with whole.fresh("diverge") as folder:
            high = 10 ** draw.uniform(3, 30)
            lrs = f"1e-3,1e-1,{high:.3g}"
            ended = whole.server.run(whole.server.validate(folder, lrs=lrs))
            assert ended.status == 0, ended
            (row,) = read_json(folder / "validate.json")["results"]
            *low, last = row["runs"]
            if not last["diverged"]:  # a tiny model may come down even so
                assert last["final_loss"] < last["initial_loss"]
                outcomes["came down all the same"] += 1
                continue
            assert not any(run["diverged"] for run in low)
            assert row["best_loss"] == min(run["final_loss"] for run in low)
            assert 1e-3 <= row["best_lr"] <= 1e-1
            finite = last["final_loss"] is not None
            assert not finite or last["final_loss"] > last["initial_loss"]
            outcomes["diverged to a finite loss" if finite else "diverged beyond numbers"] += 1
    return outcomes


def out_of_memory(whole: Undisturbed, count: int) -> Outcomes:
    """A random limit on the process's memory: the right answer, or an error in one line and no number."""
    draw, outcomes = random.Random("memory"), Counter[str]()
    for _ in range(count):
        with whole.fresh("predict") as folder:
            # A model large enough to be felt: 17 MB, once in its file's mapping and once in memory.
            save_model(folder / "model", width=512)
            command = whole.server.predict(folder, model=folder / "model", rank=32)
            ended = whole.server.run(command, memory_limit=draw.uniform(28, 44))
            assert "Traceback" not in ended.stderr, ended
            if (folder / "predict.json").exists():
                (row,) = read_json(folder / "predict.json")["results"]
                failed = row["status"] == "failed"
                assert (ended.status == 1) == failed and (not failed or "memory" in ended.stderr), ended
                assert not failed or all(row[name] is None for name in NUMBERS), row
                outcomes["failed, no number" if failed else "room enough"] += 1
            else:
                assert ended.status == 1 and "out of memory" in ended.stderr, ended
                outcomes["refused before anything was measured"] += 1
            shutil.rmtree(folder / "state", ignore_errors=True)
            whole.completes("predict", folder)
    return outcomes


def clock_backwards(whole: Undisturbed, count: int) -> Outcomes:
    """The wall clock runs backwards: the same answers, and no negative time."""
    outcomes = Counter[str]()
    for index in range(count):
        name = ("predict", "validate")[index % 2]
        with whole.fresh(name) as folder:
            ended = whole.server.run(whole.command(name, folder), clock_backwards=10.0 ** (index - 1))
            assert ended.status == 0, ended
            assert whole.answer(name, folder) == whole.answers[name]
            for row in read_json(folder / f"{name}.json")["results"]:
                assert row["seconds"] >= 0
                assert all(run["seconds"] >= 0 for run in row.get("runs", ()))
            outcomes["the same answer"] += 1
    return outcomes


#: Fault: the trial, and how often it is tried by `make test` and by `python -m tests.faults`.
TRIALS: dict[str, tuple[Callable[[Undisturbed, int], Outcomes], int, int]] = {
    "kill -9 of predict": (killed("predict"), 3, 20),
    f"kill -9 of {PROBE}": (killed(PROBE), 2, 12),
    "kill -9 of validate": (killed("validate"), 2, 12),
    "kill -9 of calibrate": (killed("calibrate"), 3, 20),
    "SIGTERM": (terminated, 1, 6),
    "disk full": (disk_full, 3, 9),
    "permission lost": (permission_lost, 1, 3),
    "damaged results": (damaged_files, 2, 20),
    "damaged checkpoint": (damaged_states, 2, 20),
    "damaged safetensors": (damaged_weights, 3, 30),
    "NaN and infinity": (not_finite, 4, 24),
    "diverging learning rate": (diverging, 1, 8),
    "out of memory": (out_of_memory, 2, 12),
    "clock going backwards": (clock_backwards, 2, 6),
}
