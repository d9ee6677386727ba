"""Programs of several processes for the tests: ``start`` runs some of ``rank_programs``.

All are forked from one process that has imported everything: a start of its own would cost each rank seconds.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

HERE = Path(__file__)


def start(out, programs):
    """Run programs after each other, each by some ranks.

    Args:
        out: An existing folder for their files.
        programs: By name, (number of ranks, environment, name of a function there, its arguments).

    Returns:
        By name, (exit status, standard output, standard error) of each rank.
    """
    (out / "programs.json").write_text(json.dumps(programs))
    subprocess.run(
        [sys.executable, str(HERE), str(out)],
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            # A rank that aborts leaves where each of its threads stood.
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[2])]),
        },
        check=True,
        timeout=500,
    )
    return json.loads((out / "ended.json").read_text())


def assert_ended_well(ranks):
    """Of what ``start`` gives for one program; what the ranks wrote to standard error is told whole."""
    assert all(status == 0 for status, _, _ in ranks), told_whole(ranks)


def crashed(ranks):
    """Whether a rank died in compiled code, of which this package has none: its mistakes end otherwise."""
    return any(status in (-signal.SIGSEGV, -signal.SIGABRT) for status, _, _ in ranks)


def told_whole(ranks):
    """How each rank ended, with what it wrote to standard error: after a crash, where each thread stood."""
    ends = [f"rank {rank} ended with {status}:\n{errors}" for rank, (status, _, errors) in enumerate(ranks)]
    return "\n".join(ends)


def launch(out):
    """What ``start`` runs: fork the ranks of each program, and tell how they ended."""
    modules = (
        "hessian_lr.commands.session",
        "hessian_lr.commands.spectra",
        "hessian_lr.predict",
        "tiny_models",
        "rank_programs",
    )
    for name in modules:
        importlib.import_module(name)
    importlib.import_module("tiny_models").learned()
    ended = {}
    for name, (size, environment, function, arguments) in json.loads(
        (out / "programs.json").read_text()
    ).items():
        files = [(out / f"{name}.{rank}.out", out / f"{name}.{rank}.err") for rank in range(size)]
        environment |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        fork = multiprocessing.get_context("fork")
        ranks = [
            fork.Process(target=_rank, args=(rank, environment, files[rank], function, arguments))
            for rank in range(size)
        ]
        for one in ranks:
            one.start()
        # One that was stopped ends no more, and is ended when all others have.
        until = time.monotonic() + 300
        while any(map(_goes_on, ranks)) and time.monotonic() < until:
            time.sleep(0.05)
        for one in ranks:
            one.kill()
            one.join()
        ended[name] = [
            (one.exitcode, *(f.read_text() for f in streams))
            for one, streams in zip(ranks, files, strict=True)
        ]
    (out / "ended.json").write_text(json.dumps(ended))


def _goes_on(rank):
    return rank.is_alive() and psutil.Process(rank.pid).status() != psutil.STATUS_STOPPED


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _rank(rank, environment, files, function, arguments):
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    for stream, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.exit(getattr(importlib.import_module("rank_programs"), function)(*arguments))


if __name__ == "__main__":
    launch(Path(sys.argv[1]))
