"""Runs on a Ray cluster: a worker process for each that the cluster has room for, replaced when lost."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import socket
import textwrap
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..allocator import keep_freed_memory
from ..errors import HessianLRError, RequestError
from .engine import Cluster, Outcome, Task, train
from .join_ray import join, last_line
from .run import RunResult, precision

RETRIES = 3  # of a run whose worker is lost; and so many workers in a row may be lost as they start
_LOOK_S = 2.0  # between looks at which nodes there are, while nothing ends
_PATIENCE_S = 60.0  # how long no node may have room before the sweep gives up
_VERSIONS = ("hessian-lr", "torch", "transformers", "peft")  # what a run's last digits depend on
_CACHE = "HESSIAN_LR_CACHE"


@contextmanager
def connected(cluster: Cluster, *, cpu_only: bool) -> Iterator[OnRay]:
    """The engine on the cluster, for as long as the context lasts.

    Args:
        cluster: Which, and what a run gets.
        cpu_only: All settings are for the CPU.

    Raises:
        RequestError: Ray is not installed, there is no cluster at the address, or no node is large enough
            for a run.
    """
    try:
        import ray
    except ImportError as error:
        raise RequestError("--engine ray needs Ray: pip install 'hessian-lr[ray]'") from error
    joined = ray.is_initialized()
    if not joined:
        join(ray, cluster.address)
    engine = None
    try:
        engine = OnRay(ray, cluster, cpu_only=cpu_only)
        yield engine
    finally:
        if engine is not None:
            engine.close()
        if not joined:
            ray.shutdown()


class OnRay:
    """Trains on the workers of a cluster; a run whose worker is lost goes to another one.

    Attributes:
        notes: Which workers were lost, and with which runs.
        width: Runs that the nodes can train at a time.
    """

    def __init__(self, ray: Any, cluster: Cluster, *, cpu_only: bool) -> None:
        self.notes: list[str] = []
        self._ray = ray
        has_gpus = bool(ray.cluster_resources().get("GPU", 0)) and not cpu_only
        self._cpus, self._gpus = cluster.cpus, float(has_gpus) if cluster.gpus is None else cluster.gpus
        self._queue: deque[Task] = deque()
        self._starting: dict[Any, _Worker] = {}
        self._idle: list[_Worker] = []
        self._busy: dict[Any, tuple[_Worker, Task]] = {}
        self._losses: Counter[Task] = Counter()
        self._stillborn = 0
        self._seen = time.monotonic()
        self._look()
        if self.width < 1:
            largest = "; ".join(f"{cpus:g} CPUs, {gpus:g} GPUs" for cpus, gpus in sorted(self._nodes()))
            raise RequestError(
                f"no node of the cluster has {self._cpus} CPUs and {self._gpus:g} GPUs for a run (its nodes: "
                f"{largest}); lower --cpus-per-run or --gpus-per-run"
            )

    @property
    def room(self) -> bool:
        """Whether the cluster could train another task."""
        return len(self._queue) + len(self._busy) < self.width

    def start(self, task: Task) -> None:
        """Take a task; a worker gets it in ``wait``."""
        self._queue.append(task)

    def wait(self) -> Outcome | None:
        """What has become of a task; None: the cluster has grown.

        Raises:
            HessianLRError: workers cannot start, or no node is left.
        """
        while True:
            self._employ()
            waited_for = [*self._starting, *self._busy]
            ended: list[Any] = []
            if waited_for:
                ended, _ = self._ray.wait(waited_for, num_returns=1, timeout=_LOOK_S)
            else:
                time.sleep(_LOOK_S)
            if not ended:
                before = self.width
                self._look()
                if self.width > before:
                    return None
            elif ended[0] in self._starting:
                self._welcome(ended[0])
            elif (outcome := self._take(ended[0])) is not None:
                return outcome

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in (*self._starting.values(), *self._idle, *(one for one, _ in self._busy.values())):
            self._ray.kill(worker.actor)

    def _nodes(self) -> list[tuple[float, float]]:
        """(CPUs, GPUs) of every node that is alive."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in alive]

    def _look(self) -> None:
        """Count the runs that the nodes can train at a time, now."""
        self.width = sum(
            math.floor(min(cpus / self._cpus, gpus / self._gpus if self._gpus else math.inf))
            for cpus, gpus in self._nodes()
        )
        if self.width:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _PATIENCE_S:
            raise HessianLRError(
                f"the cluster has had no node with room for a run for {_PATIENCE_S:g} s; what is finished is "
                "kept: the same command goes on"
            )

    def _employ(self) -> None:
        """Start as many workers as there are tasks and room for, and give those that wait a task."""
        wanted = min(self.width, len(self._queue) + len(self._busy))
        for _ in range(wanted - len(self._starting) - len(self._idle) - len(self._busy)):
            actor = (
                self._ray.remote(_Trainer)
                .options(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, max_task_retries=0)
                .remote()
            )
            here = (os.getcwd(), os.environ.get(_CACHE), self._cpus)
            self._starting[actor.ready.remote(*here)] = _Worker(actor)
        while self._queue and self._idle:
            worker, task = self._idle.pop(), self._queue.popleft()
            # Resolved here, so that "auto" is one precision, and one key, on all nodes.
            dtype = str(precision(task.setting)).removeprefix("torch.")
            self._busy[worker.actor.train.remote(task, dtype)] = worker, task

    def _welcome(self, ref: Any) -> None:
        """Take on a worker that has started."""
        worker = self._starting.pop(ref)
        try:
            worker.name, versions = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise HessianLRError(f"a worker of the cluster cannot start: {last_line(error)}") from error
        except self._ray.exceptions.RayError as error:
            self._stillborn += 1
            self._look()
            if self._stillborn > RETRIES:
                raise HessianLRError(
                    f"{self._stillborn} workers in a row were lost as they started; is hessian-lr installed "
                    f"on every node? {_reason(error)}"
                ) from error
            return
        self._stillborn = 0
        if differing := [
            f"{name} {there} there, {here} here"
            for (name, here), there in zip(_versions().items(), versions.values(), strict=True)
            if here != there
        ]:
            raise HessianLRError(
                f"{worker.name} has other versions: {', '.join(differing)}; install the same on every node"
            )
        self._idle.append(worker)

    def _take(self, ref: Any) -> Outcome | None:
        """A task's outcome; None if its worker was lost and another one is to try."""
        worker, task = self._busy.pop(ref)
        try:
            run: RunResult | HessianLRError = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            self._ray.kill(worker.actor)
            raise (error.cause or error) from error
        except self._ray.exceptions.RayError as error:
            self._ray.kill(worker.actor)  # it may be out of reach only, and must not go on
            self._look()
            self._losses[task] += 1
            times, setting = self._losses[task], task.setting
            lost = f"{worker.name} was lost with {setting.method} at {task.lr:.2g}, seed {setting.seed}"
            if times > RETRIES:
                return task, HessianLRError(f"{lost}, the last of {times} workers so lost: {_reason(error)}")
            self.notes.append(
                f"{lost}; another one took the run (retry {times} of {RETRIES}): {_reason(error)}"
            )
            self._queue.appendleft(task)
            return None
        self._idle.append(worker)
        return task, run


@dataclass
class _Worker:
    """A worker process.

    Attributes:
        actor: Ray's handle of its ``_Trainer``.
        name: Process and node, once it has told them.
    """

    actor: Any
    name: str = "a worker"


class _Trainer:
    """What runs in a worker process: it keeps the last model, and trains one task after another."""

    def ready(self, folder: str, cache: str | None, threads: int) -> tuple[str, dict[str, str]]:
        """Get ready as the machine that runs the sweep is: its folder, its cache, threads for the CPUs.

        Returns:
            (the process and its node, its versions)
        """
        import torch

        from .source import Source

        if Path(folder).is_dir():
            os.chdir(folder)  # what the sweep's paths start from
        if cache is not None:
            os.environ[_CACHE] = cache
        torch.set_num_threads(threads)
        keep_freed_memory()
        self._source = Source(quiet=True)
        self._node = socket.gethostname()
        return f"worker {os.getpid()} on {self._node}", _versions()

    def train(self, task: Task, dtype: str) -> RunResult | Exception:
        """Train a task in a precision."""
        from ..progress import quiet_libraries

        setting = dataclasses.replace(task.setting, dtype=dtype)
        with quiet_libraries():
            run = train(dataclasses.replace(task, setting=setting), self._source)
        if isinstance(run, RunResult):
            return dataclasses.replace(run, setting=task.setting)
        run.args = (f"{str(run) or type(run).__name__} (on {self._node})",)
        return run


def _versions() -> dict[str, str]:
    # A build's tag, such as +cpu, may differ from node to node.
    return {name: importlib.metadata.version(name).partition("+")[0] for name in _VERSIONS}


def _reason(error: Exception) -> str:
    """Why Ray says a worker is lost, without its guesses."""
    said = last_line(error).partition(" Some common causes")[0]
    return textwrap.shorten(said, 200, placeholder="…")
