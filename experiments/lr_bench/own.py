"""What a user's own sweeps add to the constants: `python -m experiments.lr_bench.own`.

A model is left out, and the package's constants are made without it (``calibrate.calibration``). Some of its
settings then play the user's own sweeps: `hessian-lr calibrate` (``fit``) moves the constants to them, and
others of its settings are predicted. In each of many shuffles the first 1, 2, 3 or 5 are the user's and what
comes after the first 5 is predicted, the same settings whatever the number. The user's are from anywhere on
the model (``model``), of the task that is predicted (``task``), or all of another one (``other task``).

Beside it stands what the same sweeps say alone, of a constant that no prior holds (``free``): what
`calibrate` would do if it threw the package's away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.predict import PREDICTORS, Calibration
from hessian_lr.predict.fit import LAWS, Observation, fit
from hessian_lr.predict.law import Quantities
from hessian_lr.predict.rate import rate

from .calibrate import calibration, tables
from .evaluate import scored
from .laws import AFTER
from .table import HERE, PROBE, REAL_LONG, from_documents

FILE = HERE / "own.csv"
NUMBERS = (0, 1, 2, 3, 5)
MOST = max(NUMBERS)
DRAWS = 40
# A task with fewer settings would leave too few to predict.
LEAST = MOST + 3
DEFAULT = "combined"
COLUMNS = [
    *("predictor", "model", "kind", "task", "way", "own", "settings"),
    *("median_factor", "p90_factor", "coverage", "median_width"),
]
QUANTITIES = {
    "lr_stability": AFTER + "lr_stability",
    "lr_critical_start": "lr_critical_start",
    "lr_eigenvalue": "lr_eigenvalue",
    "lr_probe": "lr_probe",
}
WAYS = CALIBRATED, FREE = "calibrate", "free"


def everything() -> tuple[list[pd.DataFrame], pd.DataFrame]:
    """What the constants are made of, and every setting with AdamW of at most 300 steps that was swept."""
    made_of = tables()
    longest = scored(from_documents(REAL_LONG)[0].reindex(columns=made_of[0].columns))
    table = pd.concat([*made_of, longest], ignore_index=True)
    # In what had no short runs the column is of None.
    return made_of, table.assign(lr_probe=pd.to_numeric(table["lr_probe"]))


def without(model: str, made_of: list[pd.DataFrame]) -> Calibration:
    """The package's constants, had this model never been measured."""
    return calibration(*(one[one["model"] != model] for one in made_of))


def observation(row: dict[str, Any]) -> Observation:
    """A setting as `hessian-lr calibrate` reads it from a sweep."""
    known = {name: row[column] if row[column] > 0 else None for name, column in QUANTITIES.items()}
    return Observation(
        identity=row["key"],
        source=row["key"],
        method=row["method"],
        best_lr=row["best_lr"],
        quantities=Quantities(
            batch_size=int(row["batch_size"]), steps=int(row["steps"]), samples=int(row["samples"]), **known
        ),
    )


def scopes(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.Index, pd.Index | None]]:
    """The kind and task of a user's own sweeps, which rows those may be, and which are predicted.

    None: those that are left.
    """
    yield "model", "", table.index, None
    for task, mine in table.groupby("data"):
        if len(mine) >= LEAST:
            yield "task", str(task), mine.index, None
            yield "other task", str(task), mine.index, table.index.difference(mine.index)


def draws(mine: pd.Index, tested: pd.Index | None) -> Iterator[tuple[list[int], list[int]]]:
    """Rows in the order in which they become the user's own, ``MOST`` of them, and the rows to predict."""
    random = np.random.default_rng(len(mine))
    for _ in range(DRAWS):
        order = random.permutation(mine.to_numpy()).tolist()
        yield order[:MOST], order[MOST:] if tested is None else tested.tolist()


def study(
    predictors: Sequence[str], table: pd.DataFrame, prior: Calibration, ways: Sequence[str] = WAYS
) -> pd.DataFrame:
    """A row for each kind, draw, number of own sweeps and setting that is predicted, on one model's table."""
    known = {index: observation(row) for index, row in table.to_dict("index").items()}
    loose = {name: replace(getattr(prior, name), spreads={}) for name in LAWS}
    starts = {CALIBRATED: prior, FREE: replace(prior, **loose)}
    # Every setting as predicted by each constants; they recur, above all with one setting of one's own.
    told: dict[tuple[str, frozenset[int]], dict[str, dict[int, tuple[float, ...]]]] = {}
    rows = []
    for kind, task, mine, tested in scopes(table):
        for draw, (own, rest) in enumerate(draws(mine, tested)):
            for number in NUMBERS:
                for way in ways if number else (CALIBRATED,):
                    key = (way, frozenset(own[:number]))
                    if key not in told:
                        constants = starts[way]
                        if number:
                            constants = fit([known[i] for i in own[:number]], constants)
                        told[key] = {name: _predicted(name, constants, known) for name in predictors}
                    for name in predictors:
                        shared = (name, kind, task, way, number, draw)
                        rows += [(*shared, table.at[i, "key"], *told[key][name][i]) for i in rest]
    columns = ("predictor", "kind", "task", "way", "own", "draw", "key", "factor", "covered", "width")
    return pd.DataFrame(rows, columns=list(columns))


def _predicted(
    predictor: str, constants: Calibration, known: dict[int, Observation]
) -> dict[int, tuple[float, ...]]:
    """Each setting's factor error, whether its range holds the best learning rate, and how wide that is."""
    found = {}
    for index, one in known.items():
        made = rate(predictor, constants, one.quantities)
        if made is None:
            continue
        factor = max(made.lr / one.best_lr, one.best_lr / made.lr)
        found[index] = (factor, float(factor <= made.factor), made.factor**2)
    return found


def summary(rows: pd.DataFrame) -> dict[str, float]:
    """What predictions come to, over draws and settings."""
    return {
        "median_factor": float(rows["factor"].median()),
        "p90_factor": float(rows["factor"].quantile(0.9)),
        "coverage": float(rows["covered"].mean()),
        "median_width": float(rows["width"].median()),
    }


def summaries(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One for each predictor, model, kind, task (empty: all), way and number of own sweeps.

    Task by task only for the default, or the file would be mostly that.
    """
    told = []
    each = ["predictor", "model", "kind", "way", "own"]
    default = rows[(rows["predictor"] == DEFAULT) & (rows["task"] != "")]
    for by, chosen in ((each, rows), ([*each[:3], "task", *each[3:]], default)):
        for names, some in chosen.groupby(by, sort=False):
            shared = {"task": ""} | dict(zip(by, names, strict=True))
            told.append(shared | {"settings": int(some["key"].nunique())} | summary(some))
    return told


def evaluate(made_of: list[pd.DataFrame], table: pd.DataFrame) -> list[dict[str, Any]]:
    """The summaries of all models; those of 60 steps and more have short runs, for ``probe``."""
    found = []
    for model, mine in table.groupby("model"):
        prior = without(str(model), made_of)
        for predictors, some in ((PREDICTORS, mine), ([PROBE], mine[mine["lr_probe"] > 0])):
            found.append(study(predictors, some, prior).assign(model=model))
    return summaries(pd.concat(found, ignore_index=True))


def shown(rows: list[dict[str, Any]], way: str = CALIBRATED) -> str:
    """The predictor that ships as default, by model and kind, in Markdown."""
    lines = [
        "| model | own sweeps from | " + " | ".join(str(number) for number in NUMBERS) + " |",
        "|---|---|" + "---|" * len(NUMBERS),
    ]
    chosen = [row for row in rows if row["predictor"] == DEFAULT and not row["task"]]
    for model in sorted({row["model"] for row in chosen}):
        for kind in ("model", "task", "other task"):
            cells = []
            for number in NUMBERS:
                wanted = way if number else CALIBRATED
                (row,) = (
                    one
                    for one in chosen
                    if (one["model"], one["kind"], one["way"], one["own"]) == (model, kind, wanted, number)
                )
                cells.append(cell(row))
            lines.append(f"| {model} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """Median and 90% of the factor, coverage, width."""
    return (
        f"{row['median_factor']:.2f} / {row['p90_factor']:.2f}, "
        f"{row['coverage']:.0%} in {row['median_width']:.1f}×"
    )


def found() -> list[dict[str, Any]]:
    """What is committed."""
    return pd.read_csv(FILE, keep_default_na=False).to_dict("records")


def main() -> None:
    rows = evaluate(*everything())
    pd.DataFrame(rows)[COLUMNS].to_csv(FILE, index=False, float_format="%.6g")
    for way in (CALIBRATED, FREE):
        print(f"{way}:\n{shown(rows, way)}\n")


if __name__ == "__main__":
    main()
