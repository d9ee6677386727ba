"""Starts command lines, does something to them, and looks at what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_text import save, sums, tiny_llama, write_rows

from hessian_lr.records import read_json
from hessian_lr.sweep import RunResult

SERVER = Path(__file__).with_name("server.py")
# What two runs of one command may differ in: what they cost, and how they got there.
SPENT = {
    *("seconds", "sweep_seconds", "peak_rss_bytes", "matvecs", "gradient_equivalents", "notes", "sha256"),
}


@dataclass(frozen=True)
class Ended:
    """How a command line ended: its exit status (minus the signal that killed it), and what it said."""

    status: int
    stdout: str
    stderr: str
    seconds: float


class Server:
    """Runs command lines, each in a process of its own (see ``server``); a context manager.

    ``variables`` are the environment's, beside those of this process.
    """

    def __init__(self, scratch: Path, **variables: str) -> None:
        self._scratch = scratch
        self.model, self.data = scratch / "model", scratch / "rows.jsonl"
        save_model(self.model)
        write_rows(self.data, sums(6))
        warm_up = self.validate(scratch / "warm", steps=2, lrs="1e-3", seeds="0")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
        environment["PYTHONPATH"] = str(SERVER.parents[2])
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), json.dumps(warm_up)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=SERVER.parents[2],
        )
        assert self._answer() == {"ready": True}

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)

    def setting(self, **changes: Any) -> list[str]:
        values = {"model": self.model, "data": self.data, "rank": 2, "samples": 2, "steps": 3} | changes
        options = [part for name, value in values.items() for part in (f"--{name}", str(value))]
        return [*options, "--device", "cpu", "--dtype", "float32"]

    def predict(self, folder: Path, *more: str, **changes: Any) -> list[str]:
        kept = ("--checkpoint", str(folder / "state"), "--json", str(folder / "predict.json"))
        return ["predict", *self.setting(**changes), "--method", "pissa", *kept, *more]

    def validate(
        self, out: Path, *, lrs: str = "1e-3,1e-1,10", seeds: str = "0", **changes: Any
    ) -> list[str]:
        kept = ("--lrs", lrs, "--seeds", seeds, "--out", str(out))
        return ["validate", *self.setting(**changes), "--method", "pissa", *kept]

    def run(
        self, arguments: list[str], *, after: float | None = None, send: int = signal.SIGKILL, **faults: Any
    ) -> Ended:
        """Run a command line; ``after`` so many seconds send it a signal."""
        out, errors = self._scratch / "stdout", self._scratch / "stderr"
        begun = self._scratch / "begun"
        begun.unlink(missing_ok=True)
        for path in (out, errors):
            path.write_text("")
        job = {"arguments": arguments, "stdout": str(out), "stderr": str(errors), "faults": faults}
        job["begun"] = str(begun)
        faults.setdefault("without_figures", True)
        began = time.perf_counter()
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        child = self._answer()["pid"]
        if after is not None:
            while not begun.exists():
                time.sleep(0.002)
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):  # it had ended
                os.kill(child, send)
        status = self._answer()["status"]
        took = time.perf_counter() - began
        return Ended(status, out.read_text(), errors.read_text(), took)

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of command lines ended with {self._process.wait()}")
        return json.loads(line)


def save_model(folder: Path, spoil: float | None = None, width: int = 16) -> None:
    """The tiny model; with ``spoil`` in one weight."""
    model = tiny_llama(initializer_range=0.2, hidden_size=width, intermediate_size=width * 3 // 2)
    if spoil is not None:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[1, 1] = spoil
    save(model, folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # for the trials that run as another user


def answers(value: Any) -> Any:
    """A document without what two runs of one command may differ in."""
    if isinstance(value, dict):
        return {name: answers(item) for name, item in value.items() if name not in SPENT}
    return [answers(item) for item in value] if isinstance(value, list) else value


def document(path: Path) -> Any:
    return answers(read_json(path))


def runs(folder: Path) -> dict[str, bytes]:
    """The finished runs of a folder by their names; each can be read and is what its name says."""
    paths = sorted(folder.rglob("runs/*.json"))
    for path in paths:
        assert f"{RunResult.read(path).key}.json" == path.name
    return {path.name: path.read_bytes() for path in paths}


def readable(folder: Path) -> None:
    """Every JSON document of a folder can be read, whatever happened to who wrote it."""
    for path in folder.rglob("*.json"):
        read_json(path)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.tmp"))
