"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch
from tiny_models import make_batch
from torch import Tensor


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On models this small threads cost three times what they save, and decide the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """`validate` without its figures, which take most of its time on a tiny model."""
    monkeypatch.setattr("hessian_lr.study.validating._draw", lambda *_: None)


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    """Two microbatches of unequal size and unequal numbers of labels, one with padding."""
    return [make_batch(2, 9, seed=1), make_batch(3, 12, seed=2, unscored=7, padding=2)]


# A run of all tests draws the same examples each time, so that it fails for what was changed alone;
# `--hypothesis-profile=fuzz` looks for what they do not find.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("fuzz", max_examples=2_000)
hypothesis.settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pretrained model's tests first: they take longest, and a process that ends early waits for them."""
    items.sort(key=lambda item: "real_model" not in item.keywords)
