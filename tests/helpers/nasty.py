"""Strategies for files that are nearly right, and for those that nobody would write but an enemy."""

from __future__ import annotations

import copy
import json

from hypothesis import strategies as st

#: What JSON can say that ``json.dumps`` will not; each stands for itself once the text is written.
RAW = {
    "@infinite": "1e999",
    "@digits": "1" * 5_000,
    "@deep": "[" * 3_000 + "]" * 3_000,
    "@rather deep": "[" * 700 + "]" * 700,
    "@deep object": '{"a":' * 3_000 + "1" + "}" * 3_000,
    "@long": '"' + "x" * 200_000 + '"',
}
TEXT = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(
    [
        "",
        "\x00",
        "\ud800",
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "nan",
        "cuda:99",
        "--",
        "\x1b]0;x\x07",
    ]
)
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**25, 10**400, -0.0, 5e-324, 1e-300, 1.7e308])
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT | st.sampled_from(sorted(RAW))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw, *documents):
    """One of some JSON documents with up to three of its values replaced, left out or added."""
    document = [copy.deepcopy(draw(st.sampled_from(documents)))]
    for _ in range(draw(st.integers(0, 3))):
        holder, key = document, 0
        while isinstance(holder[key], (dict, list)) and holder[key] and draw(st.integers(0, 5)):
            holder = holder[key]
            key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        what = draw(st.sampled_from(["replace", "replace", "leave out", "add"]))
        if what == "leave out" and holder is not document:
            del holder[key]
        elif what == "add" and isinstance(holder[key], dict):
            holder[key][draw(TEXT)] = draw(VALUES)
        else:
            holder[key] = draw(VALUES)
    return document[0]


@st.composite
def spoiled(draw, content):
    """Bytes with a defect that no editor would make."""
    kind = draw(
        st.sampled_from(["whole", "whole", "whole", "cut", "flip", "insert", "bom", "utf-16", "twice"])
    )
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "cut":
        return content[:at]
    if kind == "flip" and content:
        return content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
    if kind == "insert":
        junk = draw(
            st.binary(max_size=8) | st.sampled_from([b"\x00", b"NaN", b"[" * 5_000, b"\xff", b"\xed\xa0\x80"])
        )
        return content[:at] + junk + content[at:]
    if kind == "bom":
        return b"\xef\xbb\xbf" + content
    if kind == "utf-16":
        return content.decode("latin-1").encode("utf-16")
    return content * 2 if kind == "twice" else content


def as_json(document) -> bytes:
    """The document's text, with what ``RAW`` stands for."""
    text = json.dumps(document)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text.encode()


def json_files(*documents):
    """The bytes of a JSON file that is one of the documents, or nearly so."""
    return changed(*documents).map(as_json).flatmap(spoiled)
