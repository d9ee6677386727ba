"""Every failure is told in one line that helps, and docs/errors.md lists what is printed."""

from __future__ import annotations

import re

import pytest

from tests.provoked.failures import FAILURES
from tests.provoked.page import BEGIN, END, PAGE, with_tables
from tests.provoked.running import PREFIX, provoking

ALL = [one for group in FAILURES.values() for one in group]
#: Sizes and times are the machine's.
NUMBER = re.compile(r"\d[\d,.]*(e[+-]?\d+)?")


@pytest.fixture(scope="module")
def provoke():
    with provoking() as provoke:
        yield provoke


@pytest.fixture(scope="module")
def listed():
    """What the page says that each failure prints, numbers aside."""
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    return {tuple(row.split(" | ")[:2]): NUMBER.sub("0", row) for row in rows}


@pytest.mark.parametrize("failure", ALL, ids=lambda failure: failure.cause)
def test_a_failure_is_one_line_that_helps_and_is_listed(failure, provoke, listed):
    (line,) = provoke(failure).stderr.splitlines()
    said = line.removeprefix(PREFIX)
    # Libraries word their part as they like from release to release.
    own = re.split(r"[:.] | \(", said)[0] if failure.quotes else said
    (row,) = with_rows(failure, own)
    kept = listed[f"| {failure.cause}", f"`{failure.command}`"]
    assert row in kept, "docs/errors.md is not current: python -m tests.provoked"


def with_rows(failure, text):
    """The part of the page's row that tells the text."""
    page = with_tables(BEGIN + END, {one: text if one == failure else "" for one in ALL})
    lead = f"| {failure.cause} | `{failure.command}` | "
    return [
        NUMBER.sub("0", line.removesuffix(f" | {failure.status} |"))
        for line in page.splitlines()
        if line.startswith(lead)
    ]


def test_the_page_lists_these_failures_and_no_others(listed):
    expected = [(f"| {one.cause}", f"`{one.command}`") for one in ALL]
    assert [key for key in listed if key[0] != "| what is wrong"] == expected
    assert len(set(expected)) == len(ALL)
