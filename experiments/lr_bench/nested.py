"""What the choice of the law adds to its errors: `python -m experiments.lr_bench.nested`.

The shipped laws were chosen among all with those methods and models in sight that their errors are told of.
Here the law is chosen anew for each group that is left out, by the errors that laws fitted to part of the
others have on the rest of these (one group of the same kind left out, or one method), and then held to the
group. ``results/nested.csv`` has a row for each choice, ``results/nested.json`` the errors beside those of
laws that stand from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hessian_lr.predict.fit import conformal
from hessian_lr.records import write_json
from hessian_lr.sweep import Sweep

from .axes import SPLITS
from .curves import curves
from .evaluate import metrics, scored
from .held_out import fit, left_out, predict, usable, widths
from .laws import AFTER, LAWS, SETTING, SHARE, THEORY, Law
from .settings import LARGE
from .step_length import POWERS
from .table import HERE, read

FILE = HERE / "nested.csv"
#: By what the inner errors choose. The mean tells laws apart most finely and is the one to read.
CRITERIA: dict[str, Callable[[pd.Series], float]] = {
    "mean": lambda errors: float(errors.mean()),
    "median": lambda errors: float(errors.median()),
    "p90": lambda errors: float(errors.quantile(0.9)),
}
#: Laws that stand from the start, to compare with.
STANDING = ("combined", "eigenvalue", "adam", "probe", "tenth of the steps, free")
#: What is left out to choose by: a group of the kind that the law is then held to, or a method in any case.
SAME, METHOD = "the same", "method"
CHOSEN = "chosen anew"
# n^¼ and n^½ are among the laws; the other powers that were tried for n.
NEW_POWERS = tuple(power for power in POWERS if power not in (0.25, 0.5))
POOLS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "every setting": lambda t: pd.Series(True, index=t.index),
    "the small models'": lambda t: t["model"] != LARGE,
    "with short runs": lambda t: t["lr_probe"].notna() & t["tenth_best_lr"].notna(),
}


def with_powers(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the rates from λ under each power of n."""
    own = np.sqrt(table["parameters"]) * table["lr_sharpness"]
    made = {}
    for power in NEW_POWERS:
        lr = own / table["parameters"] ** power
        made[f"lr_n^{power}"] = lr
        made[f"critical_over_n^{power}"] = table["lr_critical_start"] / lr
        made[f"stability_over_n^{power}"] = table[AFTER + "lr_stability"] / lr
    return table.assign(**made)


def _powers() -> list[Law]:
    """``eigenvalue`` and ``combined`` with the other powers of n."""
    laws = []
    for power in NEW_POWERS:
        alone = {f"lr_n^{power}": THEORY} | SETTING
        shares = {f"{name}_over_n^{power}": SHARE for name in ("critical", "stability")}
        laws += [Law(f"eigenvalue, n^{power}", alone), Law(f"combined, n^{power}", alone | shares)]
    return laws


def candidates(table: pd.DataFrame) -> list[Law]:
    """The laws that have all their quantities in every setting."""
    return [law for law in (*LAWS, *_powers()) if usable(law, table).all()]


def log_errors(lr: pd.Series, table: pd.DataFrame) -> pd.Series:
    return np.abs(np.log(lr / table["best_lr"]))


def held_to(
    laws: Sequence[Law], table: pd.DataFrame, groups: pd.Series, inner_groups: pd.Series, group: str
) -> list[dict[str, Any]]:
    """The law that the other groups choose, by each criterion, with its predictions for this one's settings.

    Nothing of the group's answers takes part: the errors that choose are of fits to the others without one of
    their ``inner_groups``, on that one, and so is the range.
    """
    inside = groups == group
    others, apart = table[~inside], inner_groups[~inside]
    inner = {law.name: log_errors(left_out(law, others, apart), others) for law in laws}
    found = []
    for criterion, of in CRITERIA.items():
        law = min(laws, key=lambda one: of(inner[one.name]))
        lr = pd.Series(predict(law, fit(law, others), table[inside]), index=table.index[inside])
        half = float(np.exp(conformal(inner[law.name].to_numpy())))
        found.append({"group": group, "criterion": criterion, "law": law.name, "lr": lr, "half": half})
    return found


def nested(
    laws: Sequence[Law],
    table: pd.DataFrame,
    split: str,
    inner: str = SAME,
    groups: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """``held_to`` of each group of a way of leaving out, or of some."""
    column = table[SPLITS[split]]
    within = column if inner == SAME else table[SPLITS[inner]]
    chosen = column.unique() if groups is None else groups
    return [
        {"chosen_by": inner} | row for group in chosen for row in held_to(laws, table, column, within, group)
    ]


def told(lr: pd.Series, half: pd.Series, table: pd.DataFrame, sweeps: dict[str, Sweep]) -> dict[str, Any]:
    """The score of a column of predictions."""
    errors = log_errors(lr, table)
    return {
        **metrics(lr, table, sweeps),
        "mean_log_error": float(errors.mean()),
        "coverage": float((errors <= np.log(half)).mean()),
        "median_width": float(half.median() ** 2),
    }


def study(
    table: pd.DataFrame, runs: pd.DataFrame, pool: str, split: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores of a pool's settings under a way of leaving out, and what was chosen for each group."""
    table = table[POOLS[pool](table)].reset_index(drop=True)
    groups, laws, sweeps = table[SPLITS[split]], candidates(table), curves(runs, table)
    choices = nested(laws, table, split)
    if split != METHOD:
        choices += nested(laws, table, split, METHOD)
    frame = pd.DataFrame(choices)
    scores = []
    for (inner, criterion), own in frame.groupby(["chosen_by", "criterion"], sort=False):
        lr = pd.concat(own["lr"].to_list()).sort_index()
        halves = [pd.Series(one.half, index=one.lr.index) for one in own.itertuples()]
        row = {"law": CHOSEN, "chosen_by": inner, "criterion": criterion}
        scores.append(row | told(lr, pd.concat(halves).sort_index(), table, sweeps))
    outer = {law.name: float(log_errors(left_out(law, table, groups), table).mean()) for law in laws}
    best = min(outer, key=lambda name: outer[name])
    for law in (law for law in laws if law.name in (*STANDING, best)):
        lr, half = left_out(law, table, groups), widths(law, table, groups)
        scores.append({"law": law.name, "best": law.name == best, **told(lr, half, table, sweeps)})
    shared = {"pool": pool, "left_out": split}
    chosen = frame[["group", "chosen_by", "criterion", "law"]].to_dict("records")
    return [shared | {"laws": len(laws)} | row for row in scores], [shared | row for row in chosen]


def splits(table: pd.DataFrame) -> list[str]:
    """Ways of leaving out under which the others of a group are two groups at least."""
    return [split for split, column in SPLITS.items() if table[column].nunique() > 2]


def shown(rows: list[dict[str, Any]], criterion: str = "mean") -> str:
    """The scores of a criterion's choices, beside ``combined``, ``probe`` and the best in hindsight."""
    lines = [
        "| settings, laws | left out | law | factor, median / 90% | within 1% regret "
        "| regret, median / 90% | range holds, its width |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        law = row["law"]
        if law == CHOSEN:
            if row["criterion"] != criterion:
                continue
            by = row["left_out"] if row["chosen_by"] == SAME else row["chosen_by"]
            law = f"**chosen anew**, a {by} left out"
        elif row["best"]:
            law += " (the best in hindsight)"
        elif law not in ("combined", "probe"):
            continue
        lines.append(
            f"| {row['pool']}: {row['settings']}, {row['laws']} | {row['left_out']} | {law} "
            f"| {row['median_factor']:.2f} / {row['p90_factor']:.2f} "
            f"| {row['in_band']:.0%} | {row['median_regret']:.1%} / {row['p90_regret']:.1%} "
            f"| {row['coverage']:.0%}, {row['median_width']:.1f}× |"
        )
    return "\n".join(lines) + "\n"


def shown_choices(rows: list[dict[str, Any]]) -> str:
    """The errors of the choices by each criterion in Markdown."""
    lines = [f"| settings | left out | to choose | {' | '.join(CRITERIA)} |", "|---" * 6 + "|"]
    own = [row for row in rows if row["law"] == CHOSEN]
    for pool, split, inner in dict.fromkeys((row["pool"], row["left_out"], row["chosen_by"]) for row in own):
        alike = [
            row for row in own if (row["pool"], row["left_out"], row["chosen_by"]) == (pool, split, inner)
        ]
        told = {row["criterion"]: f"{row['median_factor']:.2f} / {row['p90_factor']:.2f}" for row in alike}
        cells = " | ".join(told[criterion] for criterion in CRITERIA)
        lines.append(f"| {pool} | {split} | {split if inner == SAME else inner} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    table, runs = read()
    table = with_powers(scored(table))
    rows, chosen = [], []
    for pool, those in POOLS.items():
        for split in splits(table[those(table)]):
            scores, choices = study(table, runs, pool, split)
            rows, chosen = rows + scores, chosen + choices
    pd.DataFrame(chosen).to_csv(FILE, index=False, lineterminator="\n")
    write_json(FILE.with_suffix(".json"), {"schema": 1, "rows": rows})
    for criterion in CRITERIA:
        print(shown(rows, criterion))
    print(
        pd.DataFrame(chosen)
        .groupby(["pool", "left_out", "chosen_by", "criterion"])["law"]
        .value_counts()
        .to_string()
    )


if __name__ == "__main__":
    main()
