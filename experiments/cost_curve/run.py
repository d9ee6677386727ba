"""What a Hessian-vector product costs as sample, rank and model grow, in gradients and in training steps.

    .venv/bin/python -m experiments.cost_curve.run

Every point is a process of its own. Gradient and products take turns in it, so that a machine whose speed
changes changes both; the ratio of their medians is what counts. The results file is written after each
point and taken up again where it ends, unless --fresh says otherwise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hessian_lr.errors import HessianLRError
from hessian_lr.records import digest, read_json, write_json

from .figure import cost_figure
from .growth import growth_table, growths
from .points import requests

ROOT = Path(__file__).resolve().parents[2]
POINT_SECONDS = 15 * 60.0


def main() -> int:
    options = read_options()
    out = Path(options.out).resolve()
    known = {point["key"]: point for point in read_json(out)["points"]} if out.exists() else {}
    asked = [r | {"threads": options.threads, "repeats": options.repeats} for r in requests(options.quick)]
    for request in [] if options.draw else asked:
        key = digest(request)
        if key in known and "failed" not in known[key] and not options.fresh:
            continue
        known[key] = {"key": key, **request, **measure(request)}
        print(known[key], flush=True)
        write_json(out, {"schema": 1, "points": list(known.values()), "growth": []})
    points = [known[digest(request)] for request in asked if digest(request) in known]
    growth = growths(points, options.quick)
    write_json(out, {"schema": 1, "points": points, "growth": growth})
    print(growth_table(growth))
    for path in cost_figure(points, options.figure, options.quick):
        print(path)
    return 0


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run one point in its process; ``failed`` with the reason where it did not live to write a result."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        write_json(asked, request | {"out": str(answer)})
        command = [sys.executable, "-m", "experiments.cost_curve.worker", str(asked)]
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=POINT_SECONDS).returncode
        except subprocess.TimeoutExpired:
            return {"failed": f"not done within {POINT_SECONDS:.0f} s"}
        return read_json(answer) if code == 0 else {"failed": f"its process ended with status {code}"}


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=None, help="results (experiments/cost_curve/results.json)")
    parser.add_argument("--figure", default=None, help="where to draw (figures/cost_curve.svg)")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--draw", action="store_true", help="measure nothing: fits and figure only")
    parser.add_argument("--quick", action="store_true", help="tiny models only, into runs/cost-curve-quick")
    options = parser.parse_args()
    quick = ROOT / "runs" / "cost-curve-quick"
    options.out = options.out or (quick if options.quick else Path(__file__).parent) / "results.json"
    options.figure = options.figure or (quick if options.quick else ROOT / "figures") / "cost_curve.svg"
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HessianLRError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
