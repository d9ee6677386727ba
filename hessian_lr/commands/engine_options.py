"""The options that say where runs are trained, and what they give."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from ..errors import RequestError, unknown_name
from ..setting import MOST, Setting
from ..sweep.engine import Cluster, Engine

ENGINES = ("local", "ray")


def engine(
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Where runs are trained: here, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Head of the Ray cluster.",
            show_default="RAY_ADDRESS, else this machine's",
        ),
    ] = None,
    cpus_per_run: Annotated[
        int | None, typer.Option(help="CPUs and threads of a run on Ray.", show_default="1")
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(
            help="GPUs of a run on Ray; 0.5: two runs share one.", show_default="1 where the cluster has any"
        ),
    ] = None,
) -> Cluster | None:
    """Where the runs are trained; None: in this process.

    Raises:
        RequestError: there is no such engine, or it takes no such option.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    asked = {"--address": address, "--cpus-per-run": cpus_per_run, "--gpus-per-run": gpus_per_run}
    if engine == "local":
        for option, value in asked.items():
            if value is not None:
                raise RequestError(f"{option} is for --engine ray; add it or leave {option} out")
        return None
    if cpus_per_run is not None and not 1 <= cpus_per_run <= MOST:
        raise RequestError(
            f"--cpus-per-run takes a whole number of 1 to {MOST:,}, not {reprlib.repr(cpus_per_run)}"
        )
    # Ray shares one GPU, or gives several whole ones.
    usable = gpus_per_run is None or (gpus_per_run >= 0 and (gpus_per_run <= 1 or gpus_per_run.is_integer()))
    if not usable:
        raise RequestError(f"--gpus-per-run takes 0 to 1, or a whole number above, not {gpus_per_run:g}")
    return Cluster(address, cpus_per_run or 1, gpus_per_run)


@contextmanager
def opened(cluster: Cluster | None, settings: Iterable[Setting]) -> Iterator[Engine | None]:
    """The engine that was asked for, for as long as the context lasts; None: this process.

    Raises:
        RequestError: the cluster cannot be reached, or has no room for a run.
    """
    if cluster is None:
        yield None
        return
    from ..sweep.on_ray import connected

    with connected(cluster, cpu_only=all(one.device == "cpu" for one in settings)) as engine:
        yield engine
