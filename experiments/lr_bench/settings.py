"""The settings of the bench: a fixed draw, in an order that leaves a fair sample wherever it is cut off.

Each model has one setting of every method at the same base, and besides as many draws at random from
methods × ranks × alpha rules × batch sizes × steps × tasks × target modules. The draw is seeded, so the list
is part of the experiment; nothing in it depends on a result.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hessian_lr.setting import Setting

from .pretrain import CONFIGURATIONS, MODELS

SEED = 20_261_124
METHODS = ("lora", "rslora", "pissa", "milora", "olora", "init-ab", "lora-ga", "dora", "gralora", "randlora")
# What PEFT does not build on GPT-2's Conv1D layers; `hessian-lr` refuses these before any work.
REFUSED = {"gpt2-2m": ("olora",)}
RANKS = (4, 8, 16, 32, 64)
BATCH_SIZES = (2, 4, 8, 16)
STEPS = (15, 30, 60, 120)
# Code has the longest rows, and so the dearest.
TASKS = ("math", "commonsense", "instruction", "math", "commonsense", "instruction", "code")
DRAWS = 51
# Rows a run are limited: a few settings of 120 steps of 16 rows would cost as much as all the others.
MOST_ROWS = 240
ATTENTION = {
    "llama-3m": ("q_proj", "v_proj"),
    "gpt2-2m": ("c_attn",),
}
BASE = {"rank": 16, "batch_size": 4, "steps": 30, "data": "math", "max_length": 256, "dtype": "bfloat16"}


# The real pretrained model: fewer, for each of its steps costs as much as twenty of a small model's.
LARGE = "smollm2-135m"
LARGE_METHODS = ("lora", "pissa", "olora", "milora", "init-ab", "rslora", "dora", "lora-ga")
LARGE_BASE = BASE | {"steps": 20}
# Runs as long as fine-tuning is, which the draws have too few rows for: what curvature costs does not grow
# with the run, what a shorter sweep costs does. Those that differ most come first.
LONG = BASE | {"batch_size": 2, "steps": 300}
LONG_METHODS = (
    "lora",
    "pissa",
    "init-ab",
    "dora",
    "milora",
    "olora",
    "lora-ga",
    "rslora",
    "gralora",
    "randlora",
)


def all_settings() -> list[Setting]:
    """Every setting of the bench, the small models' first."""
    return [
        *small(),
        *long(),
        *(Setting(model=LARGE, method=method, **LARGE_BASE) for method in LARGE_METHODS),
    ]


def small() -> list[Setting]:
    """The settings on the small models, their models in turn."""
    lists = [list(_of(name)) for name in CONFIGURATIONS]
    return [one for row in zip_longest(*lists) for one in row if one is not None]


def long() -> list[Setting]:
    """The small models' longest runs, their models in turn."""
    by_model = [_each(name, LONG_METHODS, LONG) for name in CONFIGURATIONS]
    return [one for row in zip_longest(*by_model) for one in row if one is not None]


def at_base() -> list[Setting]:
    """The small models' settings that differ in nothing but the method."""
    return [one for name in CONFIGURATIONS for one in _each(name, METHODS, BASE)]


def _each(name: str, methods: Sequence[str], base: dict[str, Any]) -> list[Setting]:
    """A setting of every method that the model can be adapted with."""
    able = [method for method in methods if method not in REFUSED.get(name, ())]
    return [Setting(model=_model(name), method=method, **base) for method in able]


def _of(name: str) -> Iterator[Setting]:
    draw = random.Random(f"{SEED} {name}")
    methods = [method for method in METHODS if method not in REFUSED.get(name, ())]
    same = _each(name, METHODS, BASE)
    drawn = [_draw(draw, name, methods) for _ in range(DRAWS)]
    # Two draws between any two of the base, so that a cut leaves both kinds.
    while same or drawn:
        yield from same[:1]
        yield from drawn[:3]
        del same[:1], drawn[:3]


def _draw(draw: random.Random, name: str, methods: list[str]) -> Setting:
    method = draw.choice(methods)
    # lora-ga needs 2r directions of every weight, and the narrowest here has 64.
    ranks = [rank for rank in RANKS if method != "lora-ga" or rank <= 32]
    rank = draw.choice(ranks)
    alpha = draw.choice((rank, 16, 2 * rank))
    while True:
        batch_size, steps = draw.choice(BATCH_SIZES), draw.choice(STEPS)
        if batch_size * steps <= MOST_ROWS:
            break
    return Setting(
        model=_model(name),
        method=method,
        rank=rank,
        alpha=float(alpha),
        target_modules=draw.choice(("all-linear", "all-linear", ATTENTION[name])),
        batch_size=batch_size,
        steps=steps,
        data=draw.choice(TASKS),
        max_length=256,
        dtype="bfloat16",
    )


def _model(name: str) -> str:
    return str((MODELS / name).relative_to(Path.cwd()))
