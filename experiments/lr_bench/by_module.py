"""λ_P of each adapted module by itself: `python -m experiments.lr_bench.by_module`.

After the package's warm-up, the largest eigenvalue of every module's own block of P^-½·H·P^-½ is measured in
the small models' settings, and beside them the whole matrix's from the same rows and as many products. Laws
are made of 38 over the modules' largest, mean and median eigenvalue in the place of 38/λ_P.
``results/by_module.csv`` has a row a setting; ``--report`` starts from that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from hessian_lr.curvature.adam import PreconditionedOperator, adam_preconditioner
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.curvature.vectors import flatten, unflatten
from hessian_lr.measure.adapter_modules import cost_shares, owned_parameters
from hessian_lr.measure.warmup import warm_up
from hessian_lr.prepare import Prepared
from hessian_lr.records import write_json
from hessian_lr.spectrum import lanczos

from .edge import AS_SHIPPED, judged
from .in_place import LAWS_OF_IT, small_again, with_it
from .laws import AFTER, LAWS, derived
from .measure import RTOL
from .table import HERE

FILE = HERE / "by_module.csv"
ROWS, STEPS, PRODUCTS = 2, 10, 6
# What is made of the eigenvalues: of the whole matrix, and of the modules.
JOINT, MADE = "joint", ("largest", "mean", "median")


def block_product(
    operator: HessianOperator, positions: Sequence[int], root: Tensor, vector: Tensor
) -> Tensor:
    """P^-½·H·P^-½·v within the parameters at some positions, of which ``root`` is P^-½; shape (nᵢ,)."""
    own = [operator.parameters[position] for position in positions]
    pieces = unflatten(root * vector, own)
    image = torch.zeros_like(vector)
    with operator.scope():
        for _, gradient in operator.graphs():
            shares = [gradient[position] for position in positions]
            image += flatten(
                torch.autograd.grad(shares, own, pieces, retain_graph=True, materialize_grads=True)
            )
    return root * image


def measure(prepared: Prepared, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The largest eigenvalue of the whole and of each module's block, after the warm-up that the row had."""
    model, batches = prepared.model, prepared.batches[:ROWS]
    optimizer = warm_up(
        model, prepared.warmup_batches, steps=STEPS, top_lr=row[AFTER + "warmup_lr"], dtype=prepared.dtype
    )
    # The graphs of so few rows are kept, whatever else fills the memory.
    operator = HessianOperator(model, batches, dtype=prepared.dtype, memory_budget=2**40)
    diagonal = adam_preconditioner(optimizer, operator.parameters)
    whole = PreconditionedOperator(operator, diagonal)
    asked = {"rtol": RTOL, "max_products": PRODUCTS, "seed": 0}
    found = {JOINT: lanczos(whole.matvec, operator.size, **asked).value}
    owned = owned_parameters(model, operator.parameters)
    shares = cost_shares(model, owned, operator.labels / operator.tokens)
    roots = unflatten(diagonal.rsqrt(), operator.parameters)
    cost = 0.0
    for name, positions in owned.items():
        root = flatten([roots[position] for position in positions])
        top = lanczos(partial(block_product, operator, positions, root), len(root), **asked)
        found[name] = top.value
        cost += ROWS * shares[name] * top.products
    for name, value in found.items():
        yield {"module": name, "lambda_p": value, "cost": cost}


def summed_up(points: pd.DataFrame) -> pd.DataFrame:
    """A row a setting: the whole's eigenvalue, and what is made of its modules'."""
    joint = points[points["module"] == JOINT].set_index("key")
    modules = points[points["module"] != JOINT].groupby("key")["lambda_p"]
    made = pd.DataFrame({"largest": modules.max(), "mean": modules.mean(), "median": modules.median()})
    return made.assign(joint=joint["lambda_p"], cost=joint["cost"])


def report(table: pd.DataFrame) -> None:
    """Print what ``results/by_module.csv`` says, and keep it beside that."""
    points = summed_up(pd.read_csv(FILE))
    table = derived(table[table["key"].isin(points[points.min(axis=1) > 0].index)].reset_index(drop=True))
    shipped = [law for law in LAWS if law.name in AS_SHIPPED]
    rows = [{"from": "as shipped", **judged(table, law)} for law in shipped]
    for name in (JOINT, *MADE):
        own = with_it(table, points[name])
        rows += [{"from": name, **judged(own, law)} for law in LAWS_OF_IT]
    over = {name: (points["joint"] / points[name]).describe(percentiles=[0.1, 0.5, 0.9]) for name in MADE}
    costs = points["cost"] / table.set_index("key")["sweep_cost"]
    told = {
        "laws": rows,
        "joint_over": {name: one[["10%", "50%", "90%"]].to_dict() for name, one in over.items()},
        "price": float(costs.median()),
    }
    write_json(FILE.with_suffix(".json"), {"schema": 1, **told})
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format), end="\n\n")
    print(pd.DataFrame(told["joint_over"]).to_string(float_format="{:.3g}".format), end="\n\n")
    print(f"the modules' products of a setting, over its sweep: {costs.median():.0%} in the median")


def main() -> None:
    small_again(__doc__ or "", FILE, measure, report)


if __name__ == "__main__":
    main()
