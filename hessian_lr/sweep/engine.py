"""What trains the runs that a sweep lacks: an engine's interface, and this process's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..errors import HessianLRError, RankError
from ..setting import Setting
from .run import RunResult, train_once

if TYPE_CHECKING:
    from ..data import TaskData
    from ..models import LoadedModel


@dataclass(frozen=True)
class Task:
    """A run to make.

    Attributes:
        setting: Its setting, the seed included.
        lr: Its peak learning rate.
        initial_loss: The held-out loss before training, if a run has told it already.
    """

    setting: Setting
    lr: float
    initial_loss: float | None


#: A task with the run that came of it, or the reason why none did.
Outcome = tuple[Task, RunResult | Exception]


class Engine(Protocol):
    """Trains tasks, as many at a time as it has room for; writes nothing.

    Attributes:
        notes: What a reader should know of how the runs were made, such as workers that were lost.
        width: Tasks that it trains at a time.
    """

    notes: list[str]
    width: int

    @property
    def room(self) -> bool:
        """Whether another task can be started."""

    def start(self, task: Task) -> None:
        """Take a task."""

    def wait(self) -> Outcome | None:
        """What has become of a task, in whatever order they end; None: only the room has changed.

        Raises:
            HessianLRError: no task can be made any more.
        """


class Models(Protocol):
    """Has the model and the data of a setting."""

    def model(self, setting: Setting) -> LoadedModel:
        """The setting's model."""

    def data(self, setting: Setting) -> TaskData:
        """The setting's data as its model's tokenizer reads them."""


class Local:
    """One run at a time, in this process."""

    width = 1

    def __init__(self, models: Models) -> None:
        self.notes: list[str] = []
        self._models = models
        self._task: Task | None = None

    @property
    def room(self) -> bool:
        """Whether no task is at hand."""
        return self._task is None

    def start(self, task: Task) -> None:
        """Take a task; ``wait`` trains it."""
        self._task = task

    def wait(self) -> Outcome:
        """Train the task."""
        task, self._task = self._task, None
        assert task is not None
        return task, train(task, self._models)


def train(task: Task, models: Models) -> RunResult | Exception:
    """The task's run, or what kept it from ending: an error of this package or of torch, or of memory.

    Any other exception is a defect, and ends all.
    """
    try:
        loaded, data = models.model(task.setting), models.data(task.setting)
        return train_once(task.setting, task.lr, loaded, data, task.initial_loss)
    except (HessianLRError, MemoryError) as error:
        return error
    except RankError:
        raise
    except RuntimeError as error:  # torch's, for whatever a model's numbers or its device did
        failure = HessianLRError(f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster as a user asks for it.

    Attributes:
        address: host:port of the head; None: ``RAY_ADDRESS``, else the cluster that this machine is
            part of, else one of this machine alone, for as long as the sweep takes.
        cpus: CPUs of a run, which are its threads.
        gpus: GPUs of a run, 0.5 for two runs on one; None: 1 where the cluster has any and a setting is
            not for the CPU.
    """

    address: str | None
    cpus: int
    gpus: float | None
