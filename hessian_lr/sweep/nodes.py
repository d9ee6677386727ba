"""What asks for a sweep as YAML's nodes, whose places can be told: a file's, or a mapping's in its stead."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ..errors import RequestError
from ..peft_config import PeftSource
from ..setting import Setting

# Fields whose one value is a list of names, and the text that is none.
LISTS = ("fields", "target_modules")
ALL = Setting.target_modules

_NUMBERS = {
    "tag:yaml.org,2002:int": "[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+",
    "tag:yaml.org,2002:float": r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2: 1e-5 is one; 1:30 and 1_0 are text, not 90 and 10.

    So is 010, which is 8 to YAML 1.1 and 10 to YAML 1.2.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [pair for pair in pairs if pair[0] not in _NUMBERS]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _tag, _form in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_form})$"), list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads as the same: text that would be a number to it is quoted."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """A value that comes twice is written twice."""
        return True


class Nodes:
    """The nodes of a text.

    Attributes:
        name: What messages call it.
        root: The outermost node.

    Raises:
        RequestError: it is empty or no YAML.
    """

    def __init__(self, text: str, name: str, *, has_lines: bool = True) -> None:
        self.name, self._has_lines = name, has_lines
        try:
            self._loader = _Loader(text)
            root = self._loader.get_single_node()
        except yaml.YAMLError as error:
            raise self._invalid(error) from error
        except RecursionError as error:
            raise RequestError(f"{name} is nested too deeply to be a sweep") from error
        if root is None:
            raise RequestError(f"{name} is empty; name at least one key, such as `method: lora`")
        self.root = root

    @classmethod
    def of_file(cls, path: Path) -> Nodes:
        """Those of a file.

        Raises:
            RequestError: it cannot be read, or as the class.
        """
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise RequestError(f"{path} is not text in UTF-8; save it as such") from error

    @classmethod
    def of_mapping(cls, mapping: Mapping[str, Any]) -> Nodes:
        """Those of a mapping.

        Raises:
            RequestError: as ``as_yaml``, or as the class.
        """
        return cls(as_yaml(mapping) if mapping else "", "the grid", has_lines=False)

    def where(self, node: yaml.Node) -> str:
        """Where a node stands, for a message."""
        return ", ".join(filter(None, (self.name, self.line(node))))

    def line(self, node: yaml.Node) -> str:
        """The line of a file on which a node stands; empty for a mapping, which has none."""
        return f"line {node.start_mark.line + 1}" if self._has_lines else ""

    def scalar(self, node: yaml.Node) -> Any:
        """A scalar's value; None for everything else, which no field takes.

        Raises:
            RequestError: it has a tag that says nothing here.
        """
        try:
            return self._loader.construct_object(node) if isinstance(node, yaml.ScalarNode) else None
        except yaml.YAMLError as error:
            raise self._invalid(error) from error
        except (ArithmeticError, AttributeError, LookupError, ValueError):
            # A value that is not what its tag or form says, such as a date that the calendar does not have.
            return None

    def _invalid(self, error: yaml.YAMLError) -> RequestError:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = "" if mark is None else f"line {mark.line + 1}: "
        return RequestError(
            f"{self.name} is not valid YAML: {where}{' '.join(str(problem or error).split())}"
        )


def shown(node: yaml.Node) -> str:
    """A value for a message: as it stands in the file, but short."""
    if isinstance(node, yaml.ScalarNode):
        text = reprlib.repr(node.value)
        return "nothing" if not node.value else text[1:-1] if node.style is None else text
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def as_yaml(mapping: Mapping[str, Any]) -> str:
    """A mapping as the file that asks for the same; what is None in it keeps its default.

    Lists may be tuples, sets or arrays. Of ``fields`` and ``target_modules`` a tuple or a set of names is one
    value.

    Raises:
        RequestError: there is something in it that no file can hold, that is gone once it was read, or that
            may be one value or several; or it holds itself.
    """
    try:
        return str(yaml.dump(_plain(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True))
    except yaml.representer.RepresenterError as error:
        what = type(error.args[-1]).__name__
        raise RequestError(
            f"the grid has a {what}, which is neither a number, text, list nor dict"
        ) from error
    except RecursionError as error:
        raise RequestError("the grid is nested too deeply to be a sweep") from error


def _in_own_digits(value: Any) -> Any:
    """An array as lists of Python's numbers: float32's 1e-4 is 0.0001, and not 9.999999747378752e-05."""
    if getattr(getattr(value, "dtype", None), "kind", "") != "f":
        return value.tolist()
    if value.ndim:
        return [_in_own_digits(one) if hasattr(one, "tolist") else one for one in value]
    return float(str(value[()]))


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {_plain(name): _plain(one, name) for name, one in value.items() if one is not None}
    if hasattr(value, "tolist"):  # an array, or one of its numbers
        return _in_own_digits(value)
    if isinstance(value, (os.PathLike, PeftSource)):
        return str(value)
    if isinstance(value, Iterator):
        raise RequestError(f"the grid, {key}: an iterator is spent after one use; give a list")
    if isinstance(value, str) and value != value.encode(errors="ignore").decode():
        raise RequestError(f"the grid has text that UTF-8 cannot hold: {value!r}")
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return value
    values = [_plain(one) for one in (sorted(value, key=str) if isinstance(value, Set) else value)]
    if key not in LISTS or not all(isinstance(one, str) for one in values):
        return values
    if isinstance(value, tuple | Set):
        return [values]
    if len(values) > 1 and not any("," in one or one == ALL for one in values):
        names = ", ".join(map(repr, values))
        raise RequestError(
            f"the grid, {key}: [{names}] may be one value or {len(values)}: write ({names}) for one, or "
            f"[{', '.join(f'({one!r},)' for one in values)}] for {len(values)}"
        )
    return values
