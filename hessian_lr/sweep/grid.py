"""From a sweep's request to its settings, each once, and to one machine's share of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import RequestError
from ..peft_config import PeftSource
from ..records import digest
from ..setting import SGD, Setting
from .request import BY_RANK, DEFAULTS, FIELDS, FIXED, START_LR, Part, Request
from .wanted import Wanted

MOST_RUNS = 100_000
_EXAMPLES = 3
_APART = ("fields", "seed", "samples", "device")  # not among what is told of a setting


@dataclass(frozen=True)
class Grid:
    """All that a sweep is to run.

    Attributes:
        path: Its file.
        wanted: A setting each, no two of which train alike, in the order of its axes.
        varying: The fields of a setting that tell them apart, without the seed.
        notes: What a reader should know, such as settings that were merged.
    """

    path: str
    wanted: tuple[Wanted, ...]
    varying: tuple[str, ...]
    notes: tuple[str, ...]

    def label(self, setting: Setting) -> str:
        """What tells a setting from the others, in words."""
        return _words(setting, self.varying) or setting.method

    def common(self) -> str:
        """What all settings share of that which decides a run, in words."""
        first = self.wanted[0].setting
        names = [name for name in FIELDS if name not in (*self.varying, *_APART)]
        names = [name for name in names if getattr(first, name) is not None]
        if any(one.setting.alpha != one.setting.rank for one in self.wanted):
            return _words(first, names)
        names.remove("alpha")
        return f"{_words(first, names)}, alpha as rank"


def expand(request: Request) -> Grid:
    """Every combination of the request's axes that is not excluded, then those that are included.

    Settings that train alike (the same rank and alpha, say, once by a rule and once by a number) are
    merged, and a note says so. Learning rates and seeds that two parts of the request give one setting
    are put together, where only one of the two differs.

    Raises:
        RequestError: nothing is left, an exclusion fits nothing, there are too many runs, or one
            setting is given two plans that cannot be put together.
    """
    base = request.base
    if base.lrs is None and base.start_lr is None:
        base = replace(base, start_lr=START_LR)
    unused = {id(part): part for part in request.exclude}
    found: dict[str, Wanted] = {}
    again: list[Setting] = []
    for index, part in enumerate([base, *(_over(base, more) for more in request.include)]):
        _check_size(request, part)
        own: dict[str, tuple[Setting, list[int]]] = {}
        for setting in _settings(request, part):
            # An inclusion is meant, whatever was excluded before.
            fits = [e for e in request.exclude if _fits(e, setting)] if index == 0 else []
            for exclusion in fits:
                unused.pop(id(exclusion), None)
            if fits:
                continue
            seeds = own.setdefault(_identity(setting), (setting, []))[1]
            if part.lrs is None and part.start_lr == START_LR and setting.optimizer == SGD:
                raise RequestError(
                    f"{part.where}: lr: auto starts at {START_LR:g}, which suits AdamW; "
                    "for optimizer sgd say where it starts, such as {auto: 0.1} (by theory below 2/λ, which "
                    "`hessian-lr spectrum` measures)"
                )
            if setting.seed in seeds:
                again.append(setting)
            else:
                seeds.append(setting.seed)
        for identity, (setting, seeds) in own.items():
            new = Wanted(setting, tuple(sorted(seeds)), part.lrs, part.start_lr or START_LR)
            if identity in found:
                if _overlap(found[identity], new):
                    again.append(setting)
                new = _together(request, part, found[identity], new)
            found[identity] = new
    for part in unused.values():
        raise RequestError(f"{part.where}, exclude: fits none of the settings")
    if not found:
        raise RequestError(f"{request.name}: exclude leaves no setting to run")
    settings = [one.setting for one in found.values()]
    varying = _varying(settings)
    return Grid(request.name, tuple(found.values()), varying, (*request.notes, *_merged(again, varying)))


def share(wanted: Sequence[Wanted], index: int, count: int) -> tuple[Wanted, ...]:
    """The ``index``-th of ``count`` shares (from 1), which together are all and do not overlap.

    A learning rate of a setting (with all its seeds) stays in one piece, and so does a search. The
    pieces are put in the order of their content's hash and dealt like cards, so each share has as
    many as the others or one more, and each machine finds the same shares by itself.
    """
    pieces = [
        (digest([_identity(one.setting), lr], 32), place, lr)
        for place, one in enumerate(wanted)
        for lr in (one.lrs or (None,))
    ]
    mine = sorted(pieces)[index - 1 :: count]
    taken: dict[int, list[float]] = {}
    for _, place, lr in mine:
        taken.setdefault(place, []).extend(() if lr is None else (lr,))
    return tuple(
        replace(wanted[place], lrs=tuple(sorted(lrs)) or None) for place, lrs in sorted(taken.items())
    )


def _settings(request: Request, part: Part) -> Iterator[Setting]:
    """A setting for every combination, a seed each; what the part does not name has its default."""
    names = [name for name in FIELDS if name in part.axes]
    for values in itertools.product(*(part.axes[name] for name in names)):
        chosen: dict[str, Any] = dict(zip(names, values, strict=True))
        if "alpha" in chosen:
            chosen["alpha"] = _alpha(chosen["alpha"], chosen.get("rank", DEFAULTS.rank))
        try:
            yield Setting(**chosen)
        except RequestError as error:  # values that are right each by itself, but not together
            raise RequestError(f"{part.where}: {error}") from error


def _over(base: Part, more: Part) -> Part:
    """``base`` with what ``more`` names in the place of its own."""
    named = more.lrs is not None or more.start_lr is not None
    lrs, start = (more.lrs, more.start_lr) if named else (base.lrs, base.start_lr)
    return Part({**base.axes, **more.axes}, lrs, start, more.where)


def _fits(exclusion: Part, setting: Setting) -> bool:
    for name, values in exclusion.axes.items():
        if name == "alpha":
            values = tuple(_alpha(value, setting.rank) for value in values)
        own = getattr(setting, name)
        # An adapter of the user's own was read where the file names its path.
        if (str(own) if isinstance(own, PeftSource) else own) not in values:
            return False
    return True


def _alpha(value: Any, rank: int) -> Any:
    return {BY_RANK: float(rank), FIXED: DEFAULTS.alpha}.get(value, value)


def _check_size(request: Request, part: Part) -> None:
    runs = math.prod(map(len, part.axes.values())) * len(part.lrs or (None,))
    if runs > MOST_RUNS:
        raise RequestError(f"{request.name}: {runs:,} runs are more than the {MOST_RUNS:,} a sweep can have")


def _identity(setting: Setting) -> str:
    """What decides how a setting's runs go, but for the learning rate and the seed."""
    values = setting.training_identity()
    del values["seed"]
    return digest(values, 32)


def _overlap(old: Wanted, new: Wanted) -> bool:
    """Whether a run is asked for by both; searches have all their learning rates in common."""
    rates = not (old.lrs and new.lrs) or set(old.lrs) & set(new.lrs)
    return bool(rates and set(old.seeds) & set(new.seeds))


def _together(request: Request, part: Part, old: Wanted, new: Wanted) -> Wanted:
    if (old.lrs, old.start_lr) == (new.lrs, new.start_lr):
        return replace(old, seeds=tuple(sorted({*old.seeds, *new.seeds})))
    if old.seeds == new.seeds and old.lrs and new.lrs:
        return replace(old, lrs=tuple(sorted({*old.lrs, *new.lrs})))
    raise RequestError(
        f"{part.where}, include: gives a setting that is there already "
        f"({_words(new.setting, ('method', 'rank', 'batch_size', 'steps'))}) another plan of learning rates; "
        "exclude it first, or give it the same seeds and a list of learning rates in both places"
    )


def _varying(settings: Sequence[Setting]) -> tuple[str, ...]:
    names = [name for name in FIELDS if name != "seed" and len({getattr(one, name) for one in settings}) > 1]
    if "alpha" in names and all(one.alpha == one.rank for one in settings):
        names.remove("alpha")
    return tuple(names)


def _merged(again: Sequence[Setting], varying: Iterable[str]) -> list[str]:
    shown = list(dict.fromkeys(_words(one, varying) or one.method for one in again))
    if not shown:
        return []
    more = f"; and {len(shown) - _EXAMPLES} more" if len(shown) > _EXAMPLES else ""
    count = "1 setting comes" if len(shown) == 1 else f"{len(shown)} settings come"
    return [f"{count} up more than once; each is run once ({'; '.join(shown[:_EXAMPLES])}{more})"]


def _words(setting: Setting, names: Iterable[str]) -> str:
    return ", ".join(_word(name, getattr(setting, name)) for name in names)


def _word(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        value = " ".join(value)  # a table breaks it between names
    elif isinstance(value, float):
        value = f"{value:g}"
    return str(value) if name in ("method", "data", "model") else f"{name.replace('_', ' ')} {value}"
