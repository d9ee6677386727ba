"""The engine that a command asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..setting import Setting
from .engine import Engine

if TYPE_CHECKING:
    from .cluster import Cluster


@contextmanager
def opened(cluster: Cluster | None, settings: Iterable[Setting]) -> Iterator[Engine | None]:
    """The engine that ``--engine`` asked for, for as long as the context lasts; None: this process.

    Raises:
        RequestError: the cluster cannot be reached, or has no room for a run.
    """
    if cluster is None:
        yield None
        return
    from .on_ray import connected

    with connected(cluster, cpu_only=all(one.device == "cpu" for one in settings)) as engine:
        yield engine
