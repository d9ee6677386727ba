"""Frozen dataclasses that write themselves to JSON and read themselves back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import types
import typing
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, TypeVar

from .atomic import write_bytes
from .errors import DamagedError, RequestError

R = TypeVar("R", bound="Record")
# The member of a file's JSON that holds the digest of all others.
_SEAL = "sha256"
#: Of a record's field that no file holds.
UNWRITTEN = {"unwritten": True}


class Record:
    """Base of the frozen dataclasses that travel between modules as JSON.

    JSON has no NaN or infinity: ``to_dict`` turns them into null, so a number that stands
    in a file is always a finite number that was really obtained. A field with the metadata ``UNWRITTEN`` is
    not written.
    """

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {name: _plain(getattr(self, name)) for name in _written(type(self))}

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any]) -> R:
        """The record that ``to_dict`` described.

        Raises:
            RequestError: a field is missing, unknown, or of the wrong shape.
        """
        try:
            if not isinstance(values, dict):
                raise TypeError("it is not an object")
            declared = _written(cls)
            if extra := values.keys() - declared.keys():
                raise TypeError(f"it has unknown fields {sorted(extra)}")
            if missing := [name for name, f in declared.items() if _is_needed(f) and name not in values]:
                raise TypeError(f"it lacks {', '.join(missing)}")
            hints = typing.get_type_hints(cls)
            return cls(**{name: _field(name, hints[name], value) for name, value in values.items()})
        except TypeError as error:
            raise RequestError(f"this JSON is not a {cls.__name__}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write the record to ``path`` atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def read(cls: type[R], path: str | Path) -> R:
        """Read a record that ``write`` wrote.

        Raises:
            RequestError: the file is missing, is not JSON, or describes something else.
        """
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error


class Result(Record):
    """Base of records in result files: one of another version may have fields of its own, not known here."""

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any]) -> R:
        """The record that ``to_dict`` described, or another version of it.

        Raises:
            RequestError: a field is missing, or of the wrong shape.
        """
        if isinstance(values, dict):
            values = {name: value for name, value in values.items() if name in _written(cls)}
        return super().from_dict(values)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number that a float can hold; JSON's true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max


def digest(value: Any, length: int = 16) -> str:
    """Hex SHA-256 of ``value``'s canonical JSON, cut to ``length`` characters."""
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def dump_json(value: Any) -> str:
    """``value`` as indented JSON with a newline at its end; numbers that are not finite become null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Write ``dump_json(value)``; ``path`` holds either all of it or what was there before."""
    write_bytes(path, dump_json(value).encode())


def write_sealed(path: str | Path, values: dict[str, Any]) -> None:
    """Write an object that is read back later, with a checksum that ``read_json`` holds it against."""
    plain = _plain(values)
    write_json(path, {**plain, _SEAL: digest(plain, 64)})


def read_json(path: str | Path) -> Any:
    """Parse a JSON file; where it was sealed, its checksum is tested and taken out.

    Raises:
        DamagedError: the file is not JSON, or not as it was sealed.
        RequestError: it is missing or unreadable.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not valid JSON ({error}); delete it or restore it") from error
    if isinstance(value, dict) and (seal := value.pop(_SEAL, None)) is not None and seal != digest(value, 64):
        raise DamagedError(
            f"{path} is not as it was written: its checksum does not fit; delete it or restore it (or, where "
            f"it was changed on purpose, take {_SEAL!r} out of it)"
        )
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:20]} is more than a number can be")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _field(name: str, hint: Any, value: Any) -> Any:
    try:
        return _shaped(hint, value)
    except TypeError as error:
        raise TypeError(f"{name} is {error}") from error
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error


def _shaped(hint: Any, value: Any) -> Any:
    """Give JSON's lists and objects back the tuple and record types the field declares.

    Raises:
        TypeError: the value is not of the declared type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        # A float that was not finite was written as null.
        if hint in (Any, float) or type(None) in arguments:
            return None
        raise TypeError(f"null where {_called(hint)} belongs")
    if origin in (typing.Union, types.UnionType):
        options = [a for a in arguments if a is not type(None)]
        if isinstance(value, list):
            options = [a for a in options if typing.get_origin(a) in (tuple, list)] or options
        elif isinstance(value, str):
            options = [a for a in options if a is str] or options
        return _shaped(options[0], value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} where a list belongs")
        inner = arguments[0] if arguments else Any
        return tuple(_shaped(inner, item) for item in value)
    if origin is list:
        if not isinstance(value, list):
            raise TypeError(f"{value!r} where a list belongs")
        return [_shaped(arguments[0], item) for item in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} where an object belongs")
        return {name: _shaped(arguments[1], item) for name, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise TypeError("more than a number can be")
        return float(value)
    if hint in (bool, int, float, str) and type(value) is not hint:
        raise TypeError(f"{value!r} where {_called(hint)} belongs")
    return value


def _written(cls: type[Record]) -> dict[str, dataclasses.Field[Any]]:
    return {one.name: one for one in dataclasses.fields(cls) if one.metadata != UNWRITTEN}  # type: ignore[arg-type]


def _is_needed(one: dataclasses.Field[Any]) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _called(hint: Any) -> str:
    words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    if hint in words:
        return words[hint]
    kind = typing.get_origin(hint) or hint
    if kind in (tuple, list):
        return "a list"
    return "an object" if kind is dict else f"a {getattr(kind, '__name__', kind)}"
