"""Short training runs over a grid of learning rates: what predictions are judged by."""

from .run import RunResult, run_key, train_once
from .runner import Progress, Sweep, sweep
from .wanted import complete_runs, mean_final_loss

__all__ = [
    "Progress",
    "RunResult",
    "Sweep",
    "complete_runs",
    "mean_final_loss",
    "run_key",
    "sweep",
    "train_once",
]
