"""From one measured best learning rate to another setting of the same model, without new curvature."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import RequestError, unknown_name
from ..peft_config import PeftSource
from ..records import Record
from ..setting import Setting
from .law import (
    EXTRAPOLATION,
    Rate,
    beyond,
    check_domain,
    check_numbers,
    refuse_unpredicted,
    tried,
    widened,
)

# What two settings must share: nothing here knows what a difference in it does.
SHARED = ("model_place", "target_modules", "peft_config", "optimizer")


@dataclass(frozen=True)
class Transfer(Record):
    """How the best learning rate moves with a setting, all else equal.

    ln η* = offset(method) + Σ exponent·ln(quantity) + what the model and the data add. The quantities are
    ``rank``, ``scaling`` (alpha / r; alpha / √r for rslora, which is lora by that), ``batch_size`` and
    ``steps``.

    Attributes:
        exponents: Each quantity's exponent, by name.
        methods: Each method's offset in ln η, by name.
        log_half_width: ln f of the 80% range [η̂/f, η̂·f] to another setting of the same method, from pairs of
            settings of a model that had no part in the fit: of the model where it is widest.
        log_half_width_method: The same to another method.
        settings: How many settings it was fitted to.
        source: Where it came from.
        domain: The smallest and the largest value of each quantity among these, by name.
    """

    exponents: dict[str, float]
    methods: dict[str, float]
    log_half_width: float
    log_half_width_method: float
    settings: int
    source: str
    domain: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers(*self.exponents.values(), *self.methods.values())
        check_numbers(self.log_half_width, self.log_half_width_method, least=0)
        check_domain(self.domain)
        for name in (*self.exponents, *self.domain):
            if name not in (known := quantities(Setting())):
                raise unknown_name("quantity", name, known)


def quantities(setting: Setting) -> dict[str, float]:
    """The quantities that exponents may be of, by name."""
    scaling = setting.scaling
    if setting.method == "rslora":
        scaling *= math.sqrt(setting.rank)
    return {
        "rank": setting.rank,
        "scaling": scaling,
        "batch_size": setting.batch_size,
        "steps": setting.steps,
    }


def formula(setting: Setting) -> str:
    """The method that offsets and ranges go by: rslora is lora under another alpha."""
    return "lora" if setting.method == "rslora" else setting.method


def transfer(
    law: Transfer,
    measured: Sequence[tuple[Setting, float]],
    wanted: Setting,
    unsettled: Iterable[tuple[Setting, str]] = (),
) -> Rate:
    """η̂ of ``wanted`` from the measured setting that lies nearest to it.

    Args:
        law: How learning rates move.
        measured: Settings with their best learning rate.
        wanted: Another setting of the same model, modules and optimizer.
        unsettled: Settings whose sweeps tell no best learning rate, each with the reason.

    Raises:
        RequestError: no measured setting is of the same model, modules and optimizer, the law knows one
            of two different methods not, or the optimizer is not AdamW.
    """
    refuse_unpredicted(wanted)
    alike = [(one, lr) for one, lr in measured if _alike(one, wanted)]
    usable = [(one, lr) for one, lr in alike if _known(law, one, wanted)]
    if not usable:
        for one, why in unsettled:
            if _alike(one, wanted) and _known(law, one, wanted):
                raise RequestError(
                    f"nothing can be moved from {one.method}, rank {one.rank}, alpha {one.alpha:g}: {why}"
                )
    if not alike:
        raise RequestError(
            f"no run with a best learning rate is of model {wanted.model} with {_adapted(wanted)} and "
            f"optimizer {wanted.optimizer}: validate one setting of it first"
        )
    if not usable:
        raise RequestError(
            f"nothing is known of how a best learning rate moves to the method {wanted.method!r}: validate "
            f"one setting of it, or use one of {', '.join(sorted(law.methods))}"
        )
    near, best_lr = min(usable, key=lambda pair: _distance(law, pair[0], wanted))
    here, there = quantities(near), quantities(wanted)
    shift = sum(exponent * math.log(there[name] / here[name]) for name, exponent in law.exponents.items())
    width = law.log_half_width
    if formula(near) != formula(wanted):
        shift += law.methods[formula(wanted)] - law.methods[formula(near)]
        width = law.log_half_width_method
    notes = [
        f"transferred from the best learning rate {best_lr:.3g} of {near.method}, rank {near.rank}, alpha "
        f"{near.alpha:g}, batch size {near.batch_size}, {near.steps} steps, {near.data}"
    ]
    if others := _other_rows(near, wanted):
        notes.append(f"measured on {', '.join(others)}: what the data change is not known here")
    # What both settings lie outside by, they share: only the way from one to the other is a guess.
    guessed = {name: _outside(name, here[name], there[name], law) for name in there}
    width += EXTRAPOLATION * sum(guessed.values())
    if any(guessed.values()):
        ways = [name for name, way in guessed.items() if way]
        notes.append(widened([end for name in ways for end in _ends(name, here[name], there[name], law)]))
    try:
        return Rate(best_lr * math.exp(shift), math.exp(width), tuple(notes))
    except OverflowError as error:
        raise RequestError("the calibration's transfer gives no finite learning rate here") from error


def _alike(one: Setting, other: Setting) -> bool:
    return all(_same(name, one, other) for name in SHARED)


def _same(name: str, one: Setting, other: Setting) -> bool:
    values = [getattr(setting, name) for setting in (one, other)]
    # An adapter is known by its content, however its path is spelled.
    here, there = (value.digest if isinstance(value, PeftSource) else value for value in values)
    return bool(here == there)


def _adapted(setting: Setting) -> str:
    """What ``SHARED`` has of a setting's adapter, in words."""
    if setting.peft_config is not None:
        return f"the adapter {setting.peft_config}"
    modules = setting.target_modules
    return f"target modules {modules if isinstance(modules, str) else ','.join(modules)}"


def _known(law: Transfer, one: Setting, other: Setting) -> bool:
    """Whether it is known how a best learning rate moves from one's method to the other's."""
    here, there = formula(one), formula(other)
    return here == there or (here in law.methods and there in law.methods)


def _outside(name: str, here: float, there: float, law: Transfer) -> float:
    """How much, in ln, of the way between two values lies outside the law's domain."""
    ends = zip(beyond(name, here, law.domain), beyond(name, there, law.domain), strict=True)
    return sum(abs(a - b) for a, b in ends)


def _ends(name: str, here: float, there: float, law: Transfer) -> list[str]:
    """Of two values those that lie outside, in words: of two on the same side the one that is led to."""
    sides = [[part > 0 for part in beyond(name, value, law.domain)] for value in (here, there)]
    start = [f"from {tried(name, here, law.domain)}"] if any(sides[0]) and sides[0] != sides[1] else []
    return start + ([tried(name, there, law.domain)] if any(sides[1]) else [])


def _other_rows(one: Setting, other: Setting) -> list[str]:
    """How the rows of one differ from the other's, in words; columns are those of a file."""
    found = []
    if one.data_place != other.data_place:
        found.append(f"{one.data}, not {other.data}")
    elif one.fields != other.fields:
        found.append(f"{_columns(one)}, not {_columns(other)}")
    if one.max_length != other.max_length:
        found.append(f"rows cut to {one.max_length} tokens, not {other.max_length}")
    return found


def _columns(setting: Setting) -> str:
    return "the usual columns" if setting.fields is None else f"columns {','.join(setting.fields)}"


def _distance(law: Transfer, one: Setting, other: Setting) -> tuple[bool, bool, int, float]:
    """Order of nearness: another method, other data, other rows, and how far the quantities are apart."""
    apart = sum(abs(math.log(quantities(one)[name] / quantities(other)[name])) for name in law.exponents)
    other_data = one.data_place != other.data_place
    return formula(one) != formula(other), other_data, len(_other_rows(one, other)), apart
