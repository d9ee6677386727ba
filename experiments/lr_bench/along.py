"""η·λ_P along training runs: `python -m experiments.lr_bench.along`.

The bench's settings on the small models that differ in nothing but the method, its other tasks from 30 steps
on, and its runs of 120 and 300 steps, trained again at the best learning rate and at about a third and three
times that (the bench's own recipe and rows). At an eighth, a quarter and half of each run λ_P, in the
geometry of that run's own Adam, and the loss are measured on four rows. η is that of the step just taken: it
rises to its peak in the first 3% of a run and falls to 0 at the end, as half a cosine. The real model runs
in six settings of 60 steps that are in no fit, to their quarter, at the best learning rate. All in float32.
``results/along.csv`` has a row a run and moment; ``--report`` starts from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from hessian_lr.curvature.adam import PreconditionedOperator, adam_preconditioner
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.errors import HessianLRError
from hessian_lr.measure import unchanged
from hessian_lr.prepare import prepare
from hessian_lr.spectrum import lanczos
from hessian_lr.sweep.plan import learning_rate, nearest_point
from hessian_lr.sweep.trainer import fit

from .again import again
from .along_findings import AWAY, FILE, SHARES, report
from .axes import unseen
from .laws import AFTER
from .measure import RTOL
from .price import bench
from .run import Loader
from .scale import COUNTS
from .settings import BASE, LARGE
from .steadiness import at_base
from .table import setting_of

ROWS, PRODUCTS = 4, 10
# From so many steps on all settings, and from fewer other tasks than the base's.
LONG, SHORT = 120, 30
# The real model's, of so many steps and rows.
REAL_STEPS, REAL_BATCH = 60, 4


class Enough(Exception):
    """The last moment of a run has been measured."""


@contextmanager
def after_steps(then: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Call ``then`` after each step of any optimizer of this process, at the rate the step was taken with."""
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: then(optimizer))
    try:
        yield
    finally:
        handle.remove()


def along(
    row: dict[str, Any],
    loader: Loader,
    *,
    aways: Sequence[int] = AWAY,
    shares: Sequence[float] = SHARES,
) -> Iterator[dict[str, Any]]:
    """A record for each run and moment of a row of the bench's table."""
    setting = replace(setting_of(row), dtype="float32")
    loaded, task = loader(setting)
    prepared = prepare(setting, loaded, task)
    parameters = [one for one in prepared.model.parameters() if one.requires_grad]
    moments = {round(share * setting.steps): share for share in shares}
    for away in aways:
        lr = learning_rate(nearest_point(row["best_lr"]) + away)
        found: list[dict[str, Any]] = []

        def measure(optimizer: torch.optim.Optimizer, found: list[dict[str, Any]] = found) -> None:
            step = int(optimizer.state[parameters[0]]["step"])
            if step in moments:
                told = curvature(prepared.model, prepared.batches[:ROWS], optimizer, prepared.dtype)
                eta = optimizer.param_groups[0]["lr"]
                found.append({"share": moments[step], "step": step, "eta": eta, **told})
            if step == max(moments):
                raise Enough

        with suppress(Enough), unchanged(prepared.model), after_steps(measure):
            fit(
                prepared.model,
                task.train,
                setting,
                lr,
                dtype=prepared.dtype,
                pad_id=loaded.tokenizer.pad_token_id,
            )
        yield from ({"away": away, "lr": lr, **one} for one in found)


def curvature(
    model: torch.nn.Module, batches: list[Any], optimizer: torch.optim.Optimizer, dtype: torch.dtype
) -> dict[str, float]:
    """λ_P and the loss at the weights as they are; nothing where one is not finite."""
    try:
        operator = HessianOperator(model, batches, dtype=dtype)
        metric = PreconditionedOperator(operator, adam_preconditioner(optimizer, operator.parameters))
        top = lanczos(metric.matvec, operator.size, rtol=RTOL, max_products=PRODUCTS, seed=0)
    except HessianLRError:
        return {}
    return {"lambda_p": top.value, "loss": operator.loss}


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """The settings that are run again."""
    other = (table["data"] != BASE["data"]) & (table["steps"] >= SHORT)
    small = table[(table["model"] != LARGE) & (other | (table["steps"] >= LONG))]
    both = pd.concat([at_base(table), small]).drop_duplicates("key")
    return both[both[AFTER + "lr_stability"] > 0].sort_values("key").reset_index(drop=True)


def real() -> pd.DataFrame:
    """The real model's settings that are run."""
    later = unseen()
    own = later[
        (later["model"] == LARGE) & (later["batch_size"] == REAL_BATCH) & (later["steps"] == REAL_STEPS)
    ]
    return own.astype(dict.fromkeys(COUNTS, int)).reset_index(drop=True)


def main() -> None:
    table = bench()
    settings = {row["key"]: (row["key"], partial(along, row)) for row in chosen(table).to_dict("records")}
    for row in real().to_dict("records"):
        # Minutes a run.
        shorter = partial(along, row, aways=(0,), shares=SHARES[:2])
        settings[row["key"]] = row["key"], shorter
    again(__doc__ or "", FILE, settings, partial(report, table, real()))


if __name__ == "__main__":
    main()
