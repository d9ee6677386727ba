"""Provokes a failure by its command line, in a process of its own."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.harness import Ended, Server

from .failures import Failure
from .hub import refusing_hub
from .world import furnish

#: What stands for the folder in which the commands are given, wherever it was.
FOLDER = "/path/to"
PREFIX = "hessian-lr: error: "
#: What the server and the libraries write there themselves.
THEIRS = ("stdout", "stderr", "begun", "hf")


@contextmanager
def provoking() -> Iterator[Callable[[Failure], Ended]]:
    """A function that provokes a failure and tells how the command ended.

    Raises:
        AssertionError: what was said is not one line that names what it must, or a command that was refused
            left something behind.
    """
    # Not pytest's folder, into which another user may not look.
    with tempfile.TemporaryDirectory() as scratch, refusing_hub() as address:
        folder = Path(scratch).resolve()
        folder.chmod(0o755)
        variables = {
            **{"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf"), "HF_TOKEN": ""},
            **{"HESSIAN_LR_CACHE": str(folder / "cache"), "COLUMNS": "80", "CUDA_VISIBLE_DEVICES": ""},
        }
        with Server(folder, **variables) as server:
            furnish(server, folder)

            def provoke(failure: Failure) -> Ended:
                before = _files(folder)
                ended = server.run(failure.arguments, inside=str(folder), **failure.faults)
                assert ended.status != 2 or _files(folder) == before, "something is half-done"
                ended = dataclasses.replace(ended, stderr=ended.stderr.replace(str(folder), FOLDER))
                _check(failure, ended)
                return ended

            yield provoke


def _check(failure: Failure, ended: Ended) -> None:
    (line,) = ended.stderr.splitlines()
    assert ended.status == failure.status, line
    # The reason why a method failed is told under its name.
    assert line.startswith(PREFIX) or (failure.status == 1 and line.startswith("lora: ")), line
    assert not [name for name in failure.names if name not in line], line
    assert "Traceback" not in line and "unexpected" not in line and tempfile.gettempdir() not in line, line
    assert ended.stdout == "" or failure.status == 1, ended.stdout


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in THEIRS}
