"""Each fault tried a few times; `python -m tests.faults` tries them all often."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.faults.harness import Server
from tests.faults.trials import TRIALS
from tests.faults.undisturbed import Undisturbed


@pytest.fixture(scope="module")
def whole():
    # Not pytest's folder, into which another user than the one who tests may not look.
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        with Server(Path(scratch)) as server:
            yield Undisturbed(server, Path(scratch))


@pytest.mark.parametrize("fault", TRIALS)
def test_the_promises_hold_through(fault: str, whole: Undisturbed) -> None:
    trial, few, _ = TRIALS[fault]
    assert sum(trial(whole, few).values()) >= few
