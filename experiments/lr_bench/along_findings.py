"""What η·λ_P along training runs comes to, and whether it tells where a learning rate lies (``along``)."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.predict import load_calibration
from hessian_lr.records import write_json

from .held_out import fit, left_out, predict
from .in_place import THRESHOLD
from .laws import LAWS, THEORY, Law
from .prospective import predicted
from .table import HERE

FILE = HERE / "along.csv"
# The learning rates, in grid points from the best learning rate's: a factor 10^(1/4) each.
AWAY = (-2, 0, 2)
SHARES = (1 / 8, 1 / 4, 1 / 2)
# η·λ_P / 38 beyond these tells no more: far below, or long diverged.
CLIP = (1e-2, 1e2)
LENGTHS = {"30 and 60": (30, 60), "120": (120,), "300": (300,)}
SPLITS = {"method": "method", "task": "data"}
#: From one run: its learning rate, and η·λ_P / 38 at a moment of it.
AFTER_RUN = Law("after a run", {"lr_run": THEORY, "ratio": (0.0, 0.5)})
FIRST = ("combined", "adam")


def with_ratio(points: pd.DataFrame) -> pd.DataFrame:
    """The records with η·λ_P / 38, of those that have one; a λ_P below 0 is as stable as can be."""
    ratio = points["eta"] * points["lambda_p"].clip(lower=0) / THRESHOLD
    return points.assign(ratio=ratio.clip(*CLIP)).dropna(subset="ratio")


def levels(table: pd.DataFrame, points: pd.DataFrame) -> list[dict[str, Any]]:
    """The 10%, 50% and 90% quantiles of η·λ_P / 38 by length of run, moment and learning rate."""
    points = points.assign(steps=points["key"].map(table.set_index("key")["steps"]))
    rows = []
    for length, steps in LENGTHS.items():
        for (share, away), group in points[points["steps"].isin(steps)].groupby(["share", "away"]):
            low, median, high = group["ratio"].quantile([0.1, 0.5, 0.9])
            told = {"length": length, "share": share, "away": int(away), "runs": len(group)}
            rows.append(told | {"low": low, "median": median, "high": high})
    return rows


def sides(table: pd.DataFrame, points: pd.DataFrame) -> list[dict[str, Any]]:
    """How often η·λ_P / 38 tells that a learning rate is too low, about right, or too high.

    The limits between the three are half way (of logarithms) between the medians of the other methods' runs.
    """
    methods = points["key"].map(table.set_index("key")["method"])
    # The real model's are no rows of the table: they were run at their best alone.
    points = points.assign(method=methods, log=np.log(points["ratio"])).dropna(subset="method")
    rows = []
    for share, at_moment in points.groupby("share"):
        right = dict.fromkeys(AWAY, 0)
        limits = []
        for method, own in at_moment.groupby("method"):
            medians = at_moment[at_moment["method"] != method].groupby("away")["log"].median()
            limits.append([(medians[low] + medians[high]) / 2 for low, high in pairwise(AWAY)])
            for away, log in zip(own["away"], own["log"], strict=True):
                right[away] += AWAY[int(np.searchsorted(limits[-1], log))] == away
        counts = at_moment["away"].value_counts()
        told = {f"right_{away}": right[away] / int(counts[away]) for away in AWAY}
        low, high = np.exp(np.median(limits, axis=0))
        rows.append({"share": share, "low": low, "high": high, **told})
    return rows


def at(points: pd.DataFrame, lr: pd.Series) -> pd.Series:
    """η·λ_P / 38 of a run at each setting's ``lr``, by key, between those that were made (in logarithms)."""
    found = {}
    for key, group in points.groupby("key"):
        if len(group) == len(AWAY) and lr.get(key, np.nan) > 0:
            group = group.sort_values("lr")
            found[key] = np.exp(np.interp(np.log(lr[key]), np.log(group["lr"]), np.log(group["ratio"])))
    return pd.Series(found, dtype=float)


def corrected(law: Law, table: pd.DataFrame, points: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    """η̂ by ``law``, and from a run at that with ``AFTER_RUN``, by key; each group is in neither fit."""
    parts = []
    for group in groups.unique():
        own, others = table[groups == group], table[groups != group]
        first = pd.concat(
            [
                left_out(law, others, groups[groups != group]),
                pd.Series(predict(law, fit(law, others), own), index=own.index),
            ]
        )
        ratio = at(points, first.set_axis(table["key"].loc[first.index]))
        run = table.assign(lr_run=first, ratio=table["key"].map(ratio)).dropna(subset=["lr_run", "ratio"])
        mine = run[run["key"].isin(own["key"])]
        then = predict(AFTER_RUN, fit(AFTER_RUN, run.drop(mine.index)), mine)
        parts.append(mine.assign(first=mine["lr_run"], then=then))
    return pd.concat(parts)[["key", "best_lr", "first", "then"]]


def corrections(table: pd.DataFrame, points: pd.DataFrame) -> list[dict[str, Any]]:
    """How far off a prediction is, and what one run at it makes of that."""
    table = table[table["key"].isin(points["key"])].reset_index(drop=True)
    laws = {law.name: law for law in LAWS}
    rows = []
    for name, (split, column), share in product(FIRST, SPLITS.items(), SHARES):
        found = corrected(laws[name], table, points[points["share"] == share], table[column])
        row: dict[str, Any] = {"law": name, "left_out": split, "share": share, "settings": len(found)}
        for when in ("first", "then"):
            factor = np.exp(np.abs(np.log(found[when] / found["best_lr"])))
            row |= {f"{when}_median": factor.median(), f"{when}_p90": factor.quantile(0.9)}
        rows.append(row)
    return rows


def of_real(settings: pd.DataFrame, points: pd.DataFrame) -> list[dict[str, Any]]:
    """η·λ_P / 38 in each of the real model's runs, and how far off ``combined`` is there as shipped."""
    at_share = points.pivot_table(index="key", columns="share", values="ratio")
    told = predicted("combined", load_calibration(), settings)["lr"] / settings["best_lr"]
    rows = []
    for place, row in settings[settings["key"].isin(at_share.index)].iterrows():
        ratios = {str(share): float(ratio) for share, ratio in at_share.loc[row["key"]].items()}
        shared = {name: row[name] for name in ("data", "method", "rank", "steps")}
        rows.append(shared | {"ratios": ratios, "off": float(told[place])})
    return sorted(rows, key=lambda row: (row["data"], row["steps"], row["method"]))


def report(table: pd.DataFrame, settings: pd.DataFrame) -> None:
    """Print what ``results/along.csv`` says, and keep it beside that."""
    points = with_ratio(pd.read_csv(FILE))
    found = {
        "levels": levels(table, points),
        "sides": sides(table, points),
        "corrections": corrections(table, points),
        "real": of_real(settings, points),
    }
    write_json(FILE.with_suffix(".json"), {"schema": 1, **found})
    print("\n".join(shown(found)))


def shown(found: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
    """The four tables in Markdown."""
    by_run = {(r["length"], r["share"], r["away"]): r for r in found["levels"]}
    lines = [["steps", "runs", "after", *(f"{10 ** (away / 4):.1f} × best" for away in AWAY)]]
    for length, share in product(LENGTHS, SHARES):
        own = [by_run[length, share, away] for away in AWAY]
        cells = [f"{_times(r['median'])} ({_times(r['low'])} to {_times(r['high'])})" for r in own]
        lines.append([length, str(own[0]["runs"]), _moment(share), *cells])
    levels = _table(lines)
    lines = [["after", "too low below", "too high above", "right: too low", "about right", "too high"]]
    for r in found["sides"]:
        right = [f"{r[f'right_{away}']:.0%}" for away in AWAY]
        lines.append([_moment(r["share"]), _times(r["low"]), _times(r["high"]), *right])
    sides = _table(lines)
    lines = [["prediction", "left out", "as predicted", *(f"from {_moment(share)}" for share in SHARES)]]
    for law, split in product(FIRST, SPLITS):
        own = [r for r in found["corrections"] if (r["law"], r["left_out"]) == (law, split)]
        then = [f"{r['then_median']:.2f} / {r['then_p90']:.2f}" for r in own]
        lines.append([law, split, f"{own[0]['first_median']:.2f} / {own[0]['first_p90']:.2f}", *then])
    corrections = _table(lines)
    early = SHARES[:2]
    lines = [["task", "method", "rank", "steps", *map(_moment, early), "`combined` / best"]]
    for r in found["real"]:
        ratios = [_times(r["ratios"][str(share)]) for share in early]
        lines.append([r["data"], r["method"], str(r["rank"]), str(r["steps"]), *ratios, f"{r['off']:.2f}"])
    return levels, sides, corrections, _table(lines)


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _moment(share: float) -> str:
    return f"1/{1 / share:.0f}"


def _table(lines: list[list[str]]) -> str:
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest]) + "\n"
