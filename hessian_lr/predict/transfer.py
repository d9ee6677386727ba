"""From one measured best learning rate to another setting of the same model, without new curvature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError, unknown_name
from ..records import Record
from ..setting import Setting
from .law import Rate, check_numbers, refuse_unpredicted

# What two settings must share: nothing here knows what a difference in it does.
SHARED = ("model_place", "target_modules", "peft_config", "optimizer")


@dataclass(frozen=True)
class Transfer(Record):
    """How the best learning rate moves with a setting, all else equal.

    ln η* = offset(method) + Σ exponent·ln(quantity) + what the model and the data add. The quantities are
    ``rank``, ``scaling`` (alpha / r; alpha / √r for rslora), ``batch_size`` and ``steps``.

    Attributes:
        exponents: Each quantity's exponent, by name.
        methods: Each method's offset in ln η, by name.
        log_half_width: ln f of the 80% range [η̂/f, η̂·f] to another setting of the same method, from pairs of
            settings of a model that had no part in the fit.
        log_half_width_method: The same to another method, of the model where it is widest.
        settings: How many settings it was fitted to.
        source: Where it came from.
    """

    exponents: dict[str, float]
    methods: dict[str, float]
    log_half_width: float
    log_half_width_method: float
    settings: int
    source: str

    def __post_init__(self) -> None:
        check_numbers(*self.exponents.values(), *self.methods.values())
        check_numbers(self.log_half_width, self.log_half_width_method, least=0)
        for name in self.exponents:
            if name not in (known := quantities(Setting())):
                raise unknown_name("quantity", name, known)

    def log_rate(self, setting: Setting) -> float:
        """ln η* of a setting, up to what only a measurement on its model tells."""
        known = quantities(setting)
        return self.methods[setting.method] + sum(
            exponent * math.log(known[name]) for name, exponent in self.exponents.items()
        )


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


def transfer(law: Transfer, measured: Sequence[tuple[Setting, float]], wanted: Setting) -> Rate:
    """η̂ of ``wanted`` from the measured setting that lies nearest to it.

    Args:
        law: How learning rates move.
        measured: Settings with their best learning rate.
        wanted: Another setting of the same model, modules and optimizer.

    Raises:
        RequestError: no measured setting is of the same model, modules and optimizer, the law knows one
            of two different methods not, or the optimizer is not AdamW.
    """
    refuse_unpredicted(wanted)
    usable = [(one, lr) for one, lr in measured if all(_same(name, one, wanted) for name in SHARED)]
    if not usable:
        raise RequestError(
            f"no run with a best learning rate is of model {wanted.model} with target modules "
            f"{wanted.target_modules} and optimizer {wanted.optimizer}: validate one setting of it first"
        )
    usable = [(one, lr) for one, lr in usable if one.method == wanted.method or _known(law, one, wanted)]
    if not usable:
        raise RequestError(
            f"nothing is known of how a best learning rate moves to the method {wanted.method!r}: validate "
            f"one setting of it, or use one of {', '.join(sorted(law.methods))}"
        )
    near, best_lr = min(usable, key=lambda pair: _distance(law, pair[0], wanted))
    same = near.method == wanted.method
    shift = sum(
        exponent * math.log(quantities(wanted)[name] / quantities(near)[name])
        for name, exponent in law.exponents.items()
    )
    if not same:
        shift += law.methods[wanted.method] - law.methods[near.method]
    notes = [
        f"transferred from the best learning rate {best_lr:.3g} of {near.method}, rank {near.rank}, alpha "
        f"{near.alpha:g}, batch size {near.batch_size}, {near.steps} steps, {near.data}"
    ]
    if near.data != wanted.data:
        notes.append(f"measured on {near.data}, not {wanted.data}: what the data change is not known here")
    width = law.log_half_width if same else law.log_half_width_method
    try:
        return Rate(best_lr * math.exp(shift), math.exp(width), tuple(notes))
    except OverflowError as error:
        raise RequestError("the calibration's transfer gives no finite learning rate here") from error


def _same(name: str, one: Setting, other: Setting) -> bool:
    return bool(getattr(one, name) == getattr(other, name))


def _known(law: Transfer, one: Setting, other: Setting) -> bool:
    return one.method in law.methods and other.method in law.methods


def _distance(law: Transfer, one: Setting, other: Setting) -> tuple[bool, bool, float]:
    """Order of nearness: another method, other data, and how far the quantities are apart."""
    apart = sum(abs(math.log(quantities(one)[name] / quantities(other)[name])) for name in law.exponents)
    return one.method != other.method, one.data != other.data, apart
