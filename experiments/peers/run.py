"""Curvature tools side by side on one model, one sample, one tolerance: `make peers`.

    .venv/bin/python -m experiments.peers.run --samples 8

Each tool runs in a process of its own, one after another, with the same threads and the same allocator.
A tool whose result for the same request is already there is not run again, unless --fresh says so. The
table and the figure are drawn from whatever results are there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hessian_lr.atomic import write_bytes
from hessian_lr.errors import HessianLRError
from hessian_lr.records import read_json, write_json

from .figure import peers_figure
from .names import TOOLS
from .summary import markdown, read_rows

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MAX_PRODUCTS, MAX_SECONDS = 40, 15 * 60.0
QUICK_PRODUCTS = 10
# For loading the model and building the adapter, and for a last product that goes on too long.
GRACE_SECONDS = 10 * 60.0


def main() -> int:
    options = read_options()
    out = Path(options.out).resolve()
    for method in options.methods.split(","):
        for tool in [] if options.draw else options.tools.split(","):
            request = {
                "tool": tool,
                "method": method,
                "samples": options.samples,
                "seed": 0,
                "threads": options.threads,
                "modules": 2 if options.quick else options.modules,
                "max_products": QUICK_PRODUCTS if options.quick else MAX_PRODUCTS,
                "max_seconds": MAX_SECONDS,
            }
            if tool == "truth":
                request["max_products"] = 100
            path = out / f"{method}-{options.samples}-{tool}.json"
            if not options.fresh and path.exists() and same_request(read_json(path)["request"], request):
                print(f"{path.name}: there already", flush=True)
                continue
            result = measure(request, path)
            print(f"{path.name}: {result['status']} {result['reason'] or ''}", flush=True)
    rows = read_rows(out)
    if not rows:
        print(f"no results in {out}", file=sys.stderr)
        return 1
    write_bytes(out / "table.md", markdown(rows).encode())
    print(markdown(rows))
    for path in peers_figure(rows, options.figure):
        print(path)
    return 0


def measure(request: dict[str, Any], path: Path) -> dict[str, Any]:
    """Run one tool in its process; its result, or what is known if it did not live to write one.

    Raises:
        HessianLRError: the model, data or adapter could not be made.
    """
    partial = path.with_suffix(".partial")
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "request.json"
        write_json(asked, request | {"out": str(path), "partial": str(partial)})
        path.unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-m", "experiments.peers.worker", str(asked)], cwd=ROOT)
        try:
            code = child.wait(timeout=request["max_seconds"] + GRACE_SECONDS)
            if code > 0:
                raise HessianLRError(f"{request['tool']} could not even be prepared: see above")
            reason = f"its process was killed by signal {-code}" + " (out of memory?)" * (code == -9)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            reason = f"no product ended within {request['max_seconds'] + GRACE_SECONDS:.0f} s"
    if path.exists():
        return read_json(path)
    known = (
        read_json(partial) if partial.exists() else {"products": [], "stop": None, "modules": [], "notes": []}
    )
    partial.unlink(missing_ok=True)
    result = {"schema": 1, "request": request, "status": "failed", "reason": reason, "value": None, **known}
    write_json(path, result)
    return result


def same_request(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(name) == value for name, value in other.items())


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--methods", default="lora,pissa")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--modules", type=int, default=12, help="single modules for the per-module tools")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", default=None, help="folder of results (experiments/peers/results)")
    parser.add_argument("--figure", default=None, help="where to draw (figures/peers.svg)")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--draw", action="store_true", help="measure nothing: table and figure only")
    parser.add_argument(
        "--quick", action="store_true", help="one sample, few products, into runs/peers-quick"
    )
    options = parser.parse_args()
    unknown = set(options.tools.split(",")) - set(TOOLS)
    if unknown:
        parser.error(f"unknown tools {sorted(unknown)}; known: {', '.join(TOOLS)}")
    if options.quick:
        options.samples = 1
    quick = Path("runs/peers-quick")
    options.out = options.out or (quick if options.quick else HERE / "results")
    drawn = ROOT / "figures" / "peers.svg"
    options.figure = options.figure or (quick / "peers.svg" if options.quick else drawn)
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HessianLRError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
