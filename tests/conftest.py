"""Fixtures that several test files share."""

from __future__ import annotations

import hypothesis
import pytest
from tiny_models import make_batch
from torch import Tensor


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    """Two microbatches of unequal size and unequal numbers of labels, one with padding."""
    return [make_batch(2, 9, seed=1), make_batch(3, 12, seed=2, unscored=7, padding=2)]


# `--hypothesis-profile=fuzz` looks for what the hundred examples of a default run do not find.
hypothesis.settings.register_profile("fuzz", max_examples=2_000)
