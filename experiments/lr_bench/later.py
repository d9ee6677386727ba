"""Settings that were swept after the constants were made: `python -m experiments.lr_bench.later`.

What `hessian-lr validate` wrote, as it wrote it, with each prediction made before its sweep. In ``later``:
SmolLM2-135M on tasks that no constant had seen it on, by ``2026.11-e`` (they are in the fit of the constants
after it), and methods with optimizers of their own, which are in none. In ``after``: what those constants,
``2026.11-f``, have not seen either; they were predicted by ``2026.11-e``, and ``compared`` says what both
make of the same measurements. In ``probed``: runs long enough for short ones, predicted with these by the
constants that each document names, which had not seen it. In ``thousand``: runs of 1,000 steps, likewise;
in ``real_long``: runs of 300 of the real model; in ``shapes``: its adapters of other ranks and modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hessian_lr.digits import rate
from hessian_lr.predict import PREDICTORS, Calibration, load_calibration
from hessian_lr.records import read_json

from .curves import curves
from .evaluate import scored
from .prospective import NEXT, judged
from .table import HERE, PROBED, REAL_LONG, SHAPES, THOUSAND, UNSEEN, from_documents, read

LATER = HERE / "later"


def found(folder: Path = LATER) -> list[dict[str, Any]]:
    """A row for each method of each document, with the setting it shares with the others."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        document = read_json(path)
        setting = document["setting"]
        shared = {name: setting[name] for name in ("data", "rank", "alpha", "batch_size", "steps")}
        shared["modules"] = modules(setting["target_modules"])
        model = Path(setting["model"]).name
        rows += [{"file": path.name, "model": model, **shared, **row} for row in document["results"]]
    return rows


def modules(targets: str | list[str]) -> str:
    """Target modules in a word or two, as a table has them."""
    return targets if isinstance(targets, str) else ", ".join(one.removesuffix("_proj") for one in targets)


def in_range(row: dict[str, Any]) -> bool:
    """Whether the best learning rate lies in the predicted range."""
    return bool(row["predicted_low"] <= row["best_lr"] <= row["predicted_high"])


#: What tells the settings of a table apart, by the name of its column.
ALIKE = {"model": "model", "task": "data", "steps": "steps", "method": "method"}
SHAPED = {"task": "data", "method": "method", "rank": "rank", "alpha": "alpha", "modules": "modules"}


def table(rows: list[dict[str, Any]], columns: dict[str, str] = ALIKE) -> str:
    """The rows in Markdown, and what they come to."""
    found = ("predicted (range)", "best (1% band)", "factor", "regret", "in the range")
    lines = [_line((*columns, *found)), "|---" * (len(columns) + len(found)) + "|"]
    for row in rows:
        predicted, low, high = (rate(row[f"predicted_{name}"]) for name in ("lr", "low", "high"))
        best, start, end = (rate(row[name]) for name in ("best_lr", "band_low", "band_high"))
        told = (f"{predicted} ({low}…{high})", f"{best} ({start}…{end})")
        scores = (f"{row['factor_error']:.2f}", f"{row['regret']:.1%}", "yes" if in_range(row) else "no")
        lines.append(_line((*(_cell(row[name]) for name in columns.values()), *told, *scores)))
    factors, regrets = ([row[name] for row in rows] for name in ("factor_error", "regret"))
    lines.append(
        f"\n{len(rows)} settings: factor {np.median(factors):.2f} in the median, {max(factors):.2f} at most; "
        f"regret {np.median(regrets):.1%} and {max(regrets):.1%}; {sum(map(in_range, rows))} in the range"
    )
    return "\n".join(lines)


def each_predictor(rows: list[dict[str, Any]]) -> str:
    """How far each predictor was off in each row, in Markdown; in brackets where outside its range."""
    names = list(rows[0]["predictions"])
    lines = [_line(("task", "method", "best", *names)), "|---" * (3 + len(names)) + "|"]
    for row in rows:
        best, cells = row["best_lr"], []
        for one in (row["predictions"][name] for name in names):
            told = f"{max(one['lr'] / best, best / one['lr']):.2f}"
            cells.append(told if one["lr_low"] <= best <= one["lr_high"] else f"({told})")
        lines.append(_line((row["data"], row["method"], rate(best), *cells)))
    return "\n".join(lines)


def compared(folder: Path = UNSEEN) -> list[dict[str, Any]]:
    """What the last constants and today's make of a folder's measurements, a row each and predictor."""
    settings, runs = from_documents(folder)
    settings = scored(settings.reindex(columns=read()[0].columns))
    sweeps = curves(runs, settings)
    before, now = Calibration.from_dict(read_json(NEXT)["calibration"]), load_calibration()
    return [
        {"constants": one.version, **judged(predictor, one, settings, sweeps)}
        for predictor in PREDICTORS
        for one in (before, now)
    ]


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    rows = found()
    for alike in (True, False):
        own = [row for row in rows if (row["method"] in ("lora+", "loft")) is not alike]
        if own:
            print(table(own), end="\n\n")
    for folder in (UNSEEN, PROBED, THOUSAND, REAL_LONG):
        print(table(found(folder)), end="\n\n")
    print(table(found(SHAPES), SHAPED), end="\n\n")
    for folder in (PROBED, THOUSAND, REAL_LONG, SHAPES):
        print(each_predictor(found(folder)), end="\n\n")
    for row in compared():
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main()
