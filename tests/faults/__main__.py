"""``python -m tests.faults [FAULT…]``: every fault, or those named, as often as results.md tells.

Writes results.json and, from it, results.md; takes some ten minutes of one core for all.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "helpers"))

from hessian_lr.atomic import write_bytes  # noqa: E402
from hessian_lr.errors import unknown_name  # noqa: E402
from hessian_lr.records import read_json, write_json  # noqa: E402
from tests.faults.harness import Server  # noqa: E402
from tests.faults.trials import TRIALS  # noqa: E402
from tests.faults.undisturbed import Undisturbed  # noqa: E402

RESULTS, TABLE = HERE / "results.json", HERE / "results.md"


def table(results: dict[str, dict[str, object]]) -> str:
    """The results as a Markdown table, in the order of the trials."""
    lines = ["| fault | tried | what happened |", "|---|---:|---|"]
    for fault in TRIALS:
        if fault in results:
            told = "; ".join(f"{what}: {count}" for what, count in results[fault]["outcomes"].items())
            lines.append(f"| {fault} | {results[fault]['tried']} | {told} |")
    return "\n".join(lines) + "\n"


def main(faults: list[str]) -> None:
    for fault in faults:
        if fault not in TRIALS:
            raise unknown_name("fault", fault, TRIALS)
    results = read_json(RESULTS) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        with Server(Path(scratch)) as server:
            whole = Undisturbed(server, Path(scratch))
            for fault in faults or TRIALS:
                trial, _, many = TRIALS[fault]
                outcomes = {what: count for what, count in trial(whole, many).items() if count}
                results[fault] = {"tried": many, "outcomes": outcomes}
                write_json(RESULTS, results)
                write_bytes(TABLE, table(results).encode())
                print(fault, results[fault], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
