"""Training and held-out examples from a built-in task family, a local file, or a hub dataset."""

from .encode import Example, make_batches
from .task_data import TaskData, check, load
from .tasks import TASKS

__all__ = ["TASKS", "Example", "TaskData", "check", "load", "make_batches"]
