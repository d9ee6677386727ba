"""What a sweep is asked to do: a YAML file or a mapping, read so that a mistake is told with its place."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import RequestError, unknown_name
from ..setting import AUTO, MOST, Setting
from . import plan
from .nodes import LISTS, Nodes, shown

DEFAULTS = Setting()
FIELDS = tuple(field.name for field in dataclasses.fields(Setting))
START_LR = 3e-4  # where a search starts if the file does not say: a common default
BY_RANK, FIXED = "rank", "fixed"  # rules for alpha

_RANGE, _SEARCH = ("from", "to", "per_decade"), ("auto",)
_MOST_RATES = 1000


@dataclass(frozen=True)
class Part:
    """Some axes of a sweep, as one mapping names them.

    Attributes:
        axes: The values of each field of a setting that is named, in their order there, each once.
        lrs: Learning rates to run, ascending; None: not named, or a search.
        start_lr: Where a search for the best learning rate starts; None: not named, or ``lrs``.
        where: Where it stands, for a message.
    """

    axes: dict[str, tuple[Any, ...]]
    lrs: tuple[float, ...] | None
    start_lr: float | None
    where: str


@dataclass(frozen=True)
class Request:
    """What a sweep is asked to do.

    Attributes:
        name: What messages call it: the file, if it is one.
        base: The axes at its top.
        exclude: Settings to leave out of those of ``base``.
        include: Settings to add: ``base`` with these axes in the place of its own.
        notes: What a reader should know, such as values that stand there twice.
    """

    name: str
    base: Part
    exclude: tuple[Part, ...]
    include: tuple[Part, ...]
    notes: tuple[str, ...]


def read(asked: str | Path | Mapping[str, Any]) -> Request:
    """Read what a sweep is asked to do, from a YAML file or a mapping of the same keys.

    A key is the name of a ``Setting``'s field, ``lr``, ``exclude`` or ``include``; a value is one value
    or a list of them. The value of ``fields`` and ``target_modules`` is text with commas, or a list
    inside the list; in a mapping, a tuple is one such value, too. ``alpha`` is a number, ``rank`` (alpha is
    the rank) or ``fixed`` (the default setting's alpha, whatever the rank). ``lr`` is a number, a list, a
    range ``{from: 1e-5, to: 1e-2, per_decade: 4}``, ``auto``, or ``{auto: 1e-3}``, a search that starts
    there.

    Raises:
        RequestError: the file cannot be read, or what is asked for is wrong.
    """
    nodes = Nodes.of_mapping(asked) if isinstance(asked, Mapping) else Nodes.of_file(Path(asked))
    return _Reader(nodes).request()


class _Reader:
    """Turns nodes into axes; keeps the notes made on the way."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes, self.scalar = nodes, nodes.scalar
        self.notes: list[str] = []
        self.named: list[tuple[str, yaml.Node]] = []

    def request(self) -> Request:
        root = self.nodes.root
        entries = self.entries(root, (*FIELDS, "lr", "exclude", "include"), "the file")
        exclude = self.parts(entries.pop("exclude", None), FIELDS, "exclude")
        include = self.parts(entries.pop("include", None), (*FIELDS, "lr"), "include")
        base = self.part(entries, root)
        self.check_names()
        return Request(self.nodes.name, base, exclude, include, tuple(self.notes))

    def check_names(self) -> None:
        """Check the names that only torch's and PEFT's modules know: seconds of imports, so at the end."""
        from ..devices import resolve_device
        from ..methods import METHODS

        for key, node in self.named:
            name = self.scalar(node)
            if key == "method" and name not in METHODS:
                raise self.wrong(node, key, unknown_name("method", name, METHODS))
            if key == "device":
                try:
                    resolve_device(name)
                except RequestError as error:
                    raise self.wrong(node, key, error) from error

    def wrong(self, node: yaml.Node, key: str, what: object) -> RequestError:
        return RequestError(f"{self.nodes.where(node)}, {key}: {what}")

    def twice(self, node: yaml.Node, key: str, what: str) -> None:
        place = ", ".join(filter(None, (self.nodes.line(node), key)))
        self.notes.append(f"{place}: {what} stands there twice")

    def entries(self, node: yaml.Node, known: tuple[str, ...], where: str) -> dict[str, yaml.Node]:
        """A mapping's values by key, each key known and there once."""
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, where, f"expected `key: value` lines, not {shown(node)}")
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else shown(key_node)
            if key not in known:
                raise RequestError(f"{self.nodes.where(key_node)}: {unknown_name('key', key, known)}")
            if key in found:
                raise self.wrong(key_node, key, f"stands there already, on {self.nodes.line(found[key])}")
            found[key] = value
        return found

    def parts(self, node: yaml.Node | None, known: tuple[str, ...], where: str) -> tuple[Part, ...]:
        """A list of partial settings."""
        if node is None:
            return ()
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        parts = tuple(self.part(self.entries(item, known, where), item) for item in items)
        for part in parts:
            if not part.axes and part.lrs is None and part.start_lr is None:
                raise RequestError(f"{part.where}, {where}: names nothing")
        return parts

    def part(self, entries: dict[str, yaml.Node], node: yaml.Node) -> Part:
        lrs, start = self.rates(entries.pop("lr")) if "lr" in entries else (None, None)
        axes = {key: self.axis(key, one) for key, one in entries.items()}
        return Part(axes, lrs, start, self.nodes.where(node))

    def axis(self, key: str, node: yaml.Node) -> tuple[Any, ...]:
        """The values of a field, each checked by itself."""
        values = []
        for item in self.items(key, node):
            value = self.value(key, item)
            if key != "alpha" or value not in (BY_RANK, FIXED):
                try:
                    Setting(**{key: value})
                except RequestError as error:
                    raise self.wrong(item, key, error) from error
            if key in ("method", "device"):
                self.named.append((key, item))
            if value in values:
                self.twice(item, key, _text(value))
            else:
                values.append(value)
        return tuple(values)

    def items(self, key: str, node: yaml.Node) -> list[yaml.Node]:
        items: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not items:
            raise self.wrong(node, key, "the list is empty; leave the key out for its default")
        return items

    def value(self, key: str, node: yaml.Node) -> Any:
        """One value of a field, of the type that the field has."""
        if key in LISTS:
            return self.names(key, node)
        found = self.scalar(node)
        if key == "alpha":
            wanted, right = f"a number, {BY_RANK} or {FIXED}", found in (BY_RANK, FIXED) or _is_number(found)
        elif isinstance(getattr(DEFAULTS, key), int):
            wanted, right = "a whole number", isinstance(found, int) and not isinstance(found, bool)
        else:
            wanted, right = "text", isinstance(found, str) and bool(found)
        if not right:
            more = "; put it in quotes if it is meant" if wanted == "text" and found is not None else ""
            if key == "samples" and found == AUTO:
                more = f": {AUTO!r} is for `hessian-lr spectrum`"
            raise self.wrong(node, key, f"expected {wanted}, not {shown(node)}{more}")
        return float(found) if key == "alpha" and _is_number(found) else found

    def names(self, key: str, node: yaml.Node) -> Any:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found = [self.scalar(part) for part in parts]
        if not found or not all(isinstance(name, str) for name in found):
            raise self.wrong(node, key, f"expected names, separated by commas, not {shown(node)}")
        if key == "target_modules" and found == [DEFAULTS.target_modules]:
            return DEFAULTS.target_modules
        return tuple(name.strip() for text in found for name in text.split(",") if name.strip())

    def rates(self, node: yaml.Node) -> tuple[tuple[float, ...] | None, float | None]:
        """What ``lr`` says: (learning rates, None), or (None, start of a search)."""
        if isinstance(node, yaml.MappingNode):
            entries = self.entries(node, (*_RANGE, *_SEARCH), "lr")
            if set(entries) == set(_SEARCH):
                return None, self.rate(entries["auto"])
            if not {"from", "to"} <= set(entries) <= set(_RANGE):
                raise self.wrong(
                    node, "lr", "expected {from: 1e-5, to: 1e-2, per_decade: 4}, or {auto: 1e-3}"
                )
            return self.geometric(node, entries), None
        if self.scalar(node) == "auto":
            return None, START_LR
        found = [self.rate(item) for item in self.items("lr", node)]
        if len(set(found)) < len(found):
            self.twice(node, "lr", "a learning rate")
        return tuple(sorted(set(found))), None

    def rate(self, node: yaml.Node) -> float:
        value = self.scalar(node)
        if not (_is_number(value) and math.isfinite(value) and value > 0):
            raise self.wrong(node, "lr", f"expected a positive number, not {shown(node)}")
        return float(value)

    def geometric(self, node: yaml.Node, entries: dict[str, yaml.Node]) -> tuple[float, ...]:
        low, high = self.rate(entries["from"]), self.rate(entries["to"])
        density: Any = plan.POINTS_PER_DECADE
        if "per_decade" in entries:
            density = self.scalar(entries["per_decade"])
            if not isinstance(density, int) or isinstance(density, bool) or not 1 <= density <= MOST:
                expected = f"expected a whole number of 1 to {MOST:,}, not {shown(entries['per_decade'])}"
                raise self.wrong(node, "lr", f"per_decade: {expected}")
        if high < low:
            raise self.wrong(node, "lr", f"from {low:g} is above to {high:g}; exchange them")
        if math.log10(high / low) * density >= _MOST_RATES:
            raise self.wrong(node, "lr", f"this range has more than {_MOST_RATES} learning rates")
        return plan.geometric(low, high, density)


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _is_number(value: object) -> bool:
    """Whether it is a number, and one that a float can hold."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float)
