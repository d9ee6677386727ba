"""What the commands answer when nothing happens to them, against which every trial is held."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hessian_lr.records import read_json

from .harness import Ended, Server, document, leftovers, runs

#: The name of ``predict`` with short runs, of which those that ended are kept.
PROBE = "predict with short runs"
# What a failed measurement must not give.
NUMBERS = (
    *("lr", "lr_low", "lr_high", "lambda_max", "lambda_upper", "lambda_preconditioned", "lr_stability"),
    *("lr_critical", "lr_directional", "residual"),
)


class Undisturbed:
    """What the three commands answer when nothing happens to them, and how long that takes."""

    def __init__(self, server: Server, scratch: Path) -> None:
        self.server, self.scratch = server, scratch
        self.seconds: dict[str, float] = {}
        self.folder = scratch / "undisturbed"
        self.answers: dict[str, Any] = {}
        for name in ("predict", "validate", "calibrate", PROBE):
            folder = self.folder if name != PROBE else scratch / PROBE
            ended = server.run(self.command(name, folder), keep_state_always=True)
            assert ended.status == 0, ended
            self.seconds[name], self.answers[name] = ended.seconds, self.answer(name, folder)
        self.runs = runs(self.folder)
        assert len(self.runs) == 3

    def command(self, name: str, folder: Path) -> list[str]:
        if name == "predict":
            return self.server.predict(folder)
        if name == "validate":
            return self.server.validate(folder)
        if name == PROBE:
            return self.server.predict(folder, "--predictor", "probe", steps=60)
        return ["calibrate", str(self.folder), "--out", str(folder / "calibration.json")]

    def answer(self, name: str, folder: Path) -> Any:
        return document(
            folder / {"calibrate": "calibration.json", PROBE: "predict.json"}.get(name, f"{name}.json")
        )

    def completes(self, name: str, folder: Path) -> Ended:
        """The same command once more, left alone: its answer is the undisturbed one, and nothing is left."""
        before = runs(folder)
        ended = self.server.run(self.command(name, folder), keep_state_always=True)
        assert ended.status == 0, ended
        assert self.answer(name, folder) == self.answers[name]
        assert not leftovers(folder), leftovers(folder)
        state = folder / "state"
        assert {path.name for path in state.glob("*")} <= {"runs"} and not (folder / "checkpoints").exists()
        assert state.exists() == (name == PROBE)
        after = runs(folder)
        assert all(after[run] == content for run, content in before.items())
        if name == "validate":
            self.complete_runs(folder)
        return ended

    def complete_runs(self, folder: Path) -> None:
        """Every run once."""
        after = runs(folder)
        assert after.keys() == self.runs.keys()
        for row in read_json(folder / "validate.json")["results"]:
            counted = [(run["lr"], run["seed"]) for run in row["runs"]]
            assert len(counted) == len(set(counted)) == len(after)

    @contextmanager
    def fresh(self, name: str) -> Iterator[Path]:
        folder = self.scratch / f"{name}-{os.urandom(4).hex()}"
        folder.mkdir(parents=True)
        yield folder
        shutil.rmtree(folder)
