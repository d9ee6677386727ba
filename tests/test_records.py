"""Records survive JSON, and a file holds either all of what was written or what was there before."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_files import spectrum_document

from hessian_lr.errors import HessianLRError, RequestError
from hessian_lr.records import UNWRITTEN, Record, Result, digest, read_json, write_json
from hessian_lr.rows import SpectrumRow


@dataclass(frozen=True)
class Inner(Record):
    name: str
    value: float | None = None


@dataclass(frozen=True)
class Outer(Record):
    count: int
    size: float
    flag: bool = False
    words: str | tuple[str, ...] = "all"
    inners: tuple[Inner, ...] = ()
    one: Inner | None = None
    factors: dict[str, float] | None = None


FINITE = st.floats(allow_nan=False, allow_infinity=False)
INNERS = st.builds(Inner, name=st.text(), value=st.none() | FINITE)
OUTERS = st.builds(
    Outer,
    count=st.integers(),
    size=FINITE,
    flag=st.booleans(),
    words=st.text() | st.lists(st.text()).map(tuple),
    inners=st.lists(INNERS, max_size=3).map(tuple),
    one=st.none() | INNERS,
    factors=st.none() | st.dictionaries(st.text(), FINITE, max_size=3),
)


@given(OUTERS)
def test_a_record_comes_back_from_json_as_it_was(record: Outer) -> None:
    assert Outer.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    record = Outer(3, 0.1, words=("a", "b"), inners=(Inner("x", 1e-300), Inner("λ")))
    record.write(tmp_path / "deep" / "er" / "record.json")
    assert Outer.read(tmp_path / "deep" / "er" / "record.json") == record


def test_a_whole_number_in_a_float_field_is_a_float() -> None:
    size = Outer.from_dict({"count": 1, "size": 2}).size
    assert isinstance(size, float)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_written_as_null(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"record": Inner("x", value), "list": [value], "deep": {"er": (value,)}})
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {
        "record": {"name": "x", "value": None},
        "list": [None],
        "deep": {"er": [None]},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1}, "size"),
        ({"count": 1, "size": 2.0, "colour": "red"}, "unknown fields.*colour"),
        ({"count": "1", "size": 2.0}, "count is '1' where a whole number belongs"),
        ({"count": True, "size": 2.0}, "count is True where a whole number belongs"),
        ({"count": 1.5, "size": 2.0}, "count is 1.5 where a whole number belongs"),
        ({"count": None, "size": 2.0}, "count is null where a whole number belongs"),
        ({"count": 1, "size": "2"}, "size is '2' where a number belongs"),
        ({"count": 1, "size": 2.0, "inners": {"name": "x"}}, "inners is .* where a list belongs"),
        ({"count": 1, "size": 2.0, "inners": ["x"]}, "not a Inner"),
        ({"count": 1, "size": 2.0, "words": 7}, "words is 7 where a text belongs"),
        ([1, 2.0], "not an object"),
    ],
)
def test_json_that_describes_something_else_is_refused(values: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Outer.from_dict(values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Deep(Result):
    value: float
    vector: object = field(default=None, compare=False, metadata=UNWRITTEN)


@dataclass(frozen=True)
class Outermost(Result):
    parts: tuple[Deep, ...] = ()


def test_results_of_another_version_are_read_however_deep_their_own_fields_are() -> None:
    values = {"parts": [{"value": 1.0, "later": 2}], "newer": {"x": 1}}
    assert Outermost.from_dict(values) == Outermost((Deep(1.0),))
    with pytest.raises(RequestError, match="it lacks value"):
        Outermost.from_dict({"parts": [{"later": 2}]})
    whole = spectrum_document()["results"][0]
    for name in ("top", "density", "modules"):
        whole[name]["later"] = 1
    whole["modules"]["modules"][0]["later"] = 1
    assert SpectrumRow.from_dict(whole).modules is not None


def test_what_is_not_for_files_is_not_written() -> None:
    assert Deep(1.0, object()).to_dict() == {"value": 1.0} and Deep(1.0, 2) == Deep(1.0, 3)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_earlier_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"version": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(HessianLRError, match=r"a\.json: No space left on device") as caught:
        write_json(path, {"version": 2})
    assert caught.value.exit_status == 1
    assert read_json(path) == {"version": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_json_cannot_hold_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"version": 1})
    with pytest.raises(TypeError):
        write_json(path, {"version": {1, 2}})
    assert read_json(path) == {"version": 1}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HessianLRError, match=r"cannot write .*file/a\.json"):
        write_json(tmp_path / "file" / "a.json", {})


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read .*a.json"), ('{"count": 1', "a.json is not valid JSON")]
)
def test_a_missing_or_cut_file_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(RequestError, match=message):
        Outer.read(tmp_path / "a.json")


def test_a_digest_depends_on_content_and_not_on_order() -> None:
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest({}, 12)) == 12
