"""Short runs where curvature says: `python -m experiments.lr_bench.probe`.

For every setting of 60 steps and more it does what `hessian-lr predict --predictor probe` does after its
measurements, with those that the tables hold, and puts the answers there: columns ``lr_probe`` and
``probe_cost``, runs of the kind ``probe``. Everything finished is kept in ``runs/lr_bench`` and not repeated.
"""

from __future__ import annotations

import argparse

import pandas as pd

from hessian_lr.allocator import keep_freed_memory
from hessian_lr.predict import load_calibration
from hessian_lr.predict.refine import LEAST_STEPS, expected, shorter
from hessian_lr.progress import quiet_libraries
from hessian_lr.score import score
from hessian_lr.sweep import Sweep, sweep

from .evaluate import scored
from .laws import AFTER
from .prospective import predicted
from .run import OUT, Loader, told
from .table import HERE, LONG, PROBE, read, setting_of, write


def starts(table: pd.DataFrame) -> pd.Series:
    """Where each setting's short runs start, by the constants that come with the package."""
    constants = load_calibration()
    assert constants.probe is not None
    law, found = constants.probe, predicted("adam", constants, table)["lr"]
    pairs = zip(found, table[AFTER + "lr_stability"], strict=True)
    return pd.Series([expected(law, lr, stability) for lr, stability in pairs], index=table.index)


def answer(found: Sweep) -> dict[str, float | None]:
    """The two columns of a row."""
    judged = score(found, None, None, None)
    return {
        "lr_probe": None if judged.censored else judged.best_lr,
        "probe_cost": sum(run.steps for run in found.runs) * found.setting.batch_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th setting; only the whole is written")
    index, parts = map(int, parser.parse_args().part.split("/"))
    keep_freed_memory()
    loader = Loader()
    for folder in (HERE, LONG):
        settings, every_run = read(folder)
        table = scored(settings)
        able = (table["steps"] >= LEAST_STEPS) & (table[AFTER + "lr_stability"] > 0)
        begin = starts(table[able])
        answers, runs = {}, []
        with quiet_libraries():
            for place, row in list(table[able].iterrows())[index::parts]:
                short = shorter(setting_of(row.to_dict()))
                loaded, task = loader(short)
                found = sweep(short, loaded, task, start_lr=begin[place], stride=1, seeds=(0,), out=OUT)
                answers[row["key"]] = answer(found)
                runs += [{"key": row["key"], "kind": PROBE, **told(run)} for run in found.runs]
                print(row["key"], row["method"], len(found.runs), answers[row["key"]], flush=True)
        if parts == 1:
            columns = pd.DataFrame.from_dict(answers, orient="index").rename_axis("key").reset_index()
            settings = settings.drop(columns=["lr_probe", "probe_cost"], errors="ignore")
            others = every_run[every_run["kind"] != PROBE]
            write(folder, settings.merge(columns, how="left"), pd.concat([others, pd.DataFrame(runs)]))


if __name__ == "__main__":
    main()
