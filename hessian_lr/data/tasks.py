"""The built-in task families: generated on this machine, the same rows everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TASKS: dict[str, str] = {
    "math": "grade-school word problems with worked answers (85 templates, 17 of them held out)",
}

# The rows are part of what a setting means: they never change with a run's seed.
GENERATION_SEED = 20_240_607
TRAIN_ROWS = 2_000
HELDOUT_ROWS = 34
# Every fifth of the sorted templates is held out, starting with the first.
HELDOUT_STRIDE = 5
_POOL = 3_000


@dataclass(frozen=True)
class TaskRows:
    """A family's rows as (prompt, response), and the template each was made from, in the same order."""

    train: tuple[tuple[str, str], ...]
    heldout: tuple[tuple[str, str], ...]
    train_templates: tuple[int, ...]
    heldout_templates: tuple[int, ...]


def _math() -> TaskRows:
    """Word problems; the held-out rows come from templates that no training row comes from.

    So a held-out loss tells whether the adapter learned to solve, not whether it remembers a
    template. Held-out rows are spread evenly over their templates.
    """
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("gsm_symbolic", seed=GENERATION_SEED, size=_POOL)
    templates = list(dataset.task_indices)
    held = sorted(set(templates))[::HELDOUT_STRIDE]
    # Round-robin: each held-out template's first row, then each one's second, …
    queues = {name: [i for i, template in enumerate(templates) if template == name] for name in held}
    turns = max(len(queue) for queue in queues.values())
    order = [queues[name][turn] for turn in range(turns) for name in held if turn < len(queues[name])]
    chosen_heldout = order[:HELDOUT_ROWS]
    chosen_train = [i for i, template in enumerate(templates) if template not in queues][:TRAIN_ROWS]

    def row(index: int) -> tuple[str, str]:
        item = dataset[index]
        return item["question"], item["metadata"]["answer_cot"]

    return TaskRows(
        train=tuple(row(i) for i in chosen_train),
        heldout=tuple(row(i) for i in chosen_heldout),
        train_templates=tuple(templates[i] for i in chosen_train),
        heldout_templates=tuple(templates[i] for i in chosen_heldout),
    )


_BUILDERS: dict[str, Callable[[], TaskRows]] = {"math": _math}


def generate(name: str) -> TaskRows:
    """The rows of the built-in family ``name``, a key of ``TASKS``."""
    return _BUILDERS[name]()
