"""What `--checkpoint` costs: processor time, wall time and peak memory of commands with and without it.

    OMP_NUM_THREADS=1 .venv/bin/python -m experiments.checkpoint_cost.run --case spectrum --repeats 3

The two take turns in one process, after one of each that is not counted. Processor time is that of all
threads, and says more than wall time where other work runs on the machine. What keeping a state takes is
timed by itself too: the difference of whole commands scatters by more. The case is added to the file.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from experiments.peak_memory import forget_peak, peak_bytes, resident_bytes
from hessian_lr.checkpoints import Checkpoints
from hessian_lr.cli import main
from hessian_lr.errors import RequestError
from hessian_lr.records import read_json, write_json
from hessian_lr.spectrum import checkpoint
from hessian_lr.spectrum.checkpoint import Checkpoint

MODEL = "experiments/lr_bench/models/llama-3m"
SPECTRUM = ["spectrum", "--method", "pissa", "--rank", "4", "--samples", "2", "--rtol", "0.001"]
# The command's options, and the share of its time that writing may take: the rule's own, or any.
CASES: dict[str, tuple[list[str], float]] = {
    "predict": (["predict", "--rank", "4", "--samples", "2"], checkpoint.SHARE),
    "spectrum": ([*SPECTRUM, "--max-products", "18"], checkpoint.SHARE),
    "every product": ([*SPECTRUM, "--max-products", "18"], float("inf")),
}
# Finding the state's place (a hash of the weights and the sample), reading, writing and removing it.
KEEPING = [(Checkpoints, "of"), (Checkpoint, "restore"), (Checkpoint, "save"), (Checkpoints, "clear")]


class Meter:
    """What keeping states has taken since it was last reset."""

    def __init__(self) -> None:
        self.reset()
        for owner, name in KEEPING:
            setattr(owner, name, self._timed(getattr(owner, name)))
        Checkpoint._write = self._counted(Checkpoint._write)  # type: ignore[method-assign]

    def reset(self) -> None:
        self.told = {"keeping_wall": 0.0, "keeping_processor": 0.0, "states": 0, "bytes": 0}

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            wall, processor = time.perf_counter(), time.process_time()
            try:
                return function(*given, **named)
            finally:
                self.told["keeping_wall"] += time.perf_counter() - wall
                self.told["keeping_processor"] += time.process_time() - processor

        return timed

    def _counted(self, write: Callable[..., None]) -> Callable[..., None]:
        def counted(kept: Checkpoint, vectors: Any) -> None:
            write(kept, vectors)
            self.told["states"] += 1
            self.told["bytes"] += sum(v.numel() * v.element_size() for v in vectors)

        return counted


def once(folder: Path, command: list[str], kept: bool, meter: Meter) -> dict[str, float]:
    """One command; ``added_bytes`` is the peak beyond what the process held before."""
    out = folder / "out.json"
    name, *options = command
    given = [name, "--model", MODEL, "--device", "cpu", "--quiet", "--json", str(out), *options]
    forget_peak()
    meter.reset()
    before, wall, processor = resident_bytes() or 0, time.perf_counter(), time.process_time()
    with redirect_stdout(io.StringIO()):
        status = main([*given, *(["--checkpoint", str(folder / "state")] if kept else [])])
    took = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    assert status == 0
    result = read_json(out)["results"][0]
    same = {"answer": result.get("lr", result["lambda_max"]), "products": result["matvecs"]}
    return took | {"added_bytes": peak_bytes() - before} | meter.told | same


def run(case: str, repeats: int) -> dict[str, Any]:
    """Both ways in turn: medians, their ratios, and the share that keeping states took."""
    command, checkpoint.SHARE = CASES[case]
    meter = Meter()
    every: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(repeats + 1):
            for kept in (index % 2 == 0, index % 2 == 1):  # neither always first
                measured = once(Path(folder), command, kept, meter)
                if index:
                    every[kept].append(measured)
    assert len({one["answer"] for each in every.values() for one in each}) == 1
    medians = {
        name: [statistics.median(one[name] for one in every[kept]) for kept in (False, True)]
        for name in ("processor", "wall", "added_bytes")
    }
    return {
        "options": command,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "ratio": {name: with_state / without for name, (without, with_state) in medians.items()},
        "keeping_share": {
            name: statistics.median(one[f"keeping_{name}"] / one[name] for one in every[True])
            for name in ("processor", "wall")
        },
        "states_a_run": statistics.median(one["states"] for one in every[True]),
        "bytes_a_run": statistics.median(one["bytes"] for one in every[True]),
        "medians": medians,
        "without": every[False],
        "with": every[True],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="experiments/checkpoint_cost/results.json")
    asked = parser.parse_args()
    try:
        known = read_json(asked.out)
    except RequestError:
        known = {}
    found = run(asked.case, asked.repeats)
    write_json(asked.out, known | {asked.case: found})
    print(found["ratio"], found["keeping_share"], found["states_a_run"], found["bytes_a_run"])
