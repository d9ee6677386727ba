"""Family ``math``: grade-school word problems."""

from __future__ import annotations

from .rows import GENERATION_SEED, HELDOUT_ROWS, HELDOUT_STRIDE, TRAIN_ROWS, Row, TaskRows, as_task, in_turn

_POOL = 3_000


def rows() -> TaskRows:
    """Word problems; the held-out rows come from templates that no training row comes from.

    So a held-out loss tells whether the adapter learned to solve, not whether it remembers a
    template. Every fifth of the sorted templates is held out; held-out rows are spread evenly over
    their templates.
    """
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("gsm_symbolic", seed=GENERATION_SEED, size=_POOL)
    templates = list(dataset.task_indices)
    held = sorted(set(templates))[::HELDOUT_STRIDE]
    queues = {name: [i for i, template in enumerate(templates) if template == name] for name in held}
    chosen_heldout = list(in_turn(list(queues.values())))[:HELDOUT_ROWS]
    chosen_train = [i for i, template in enumerate(templates) if template not in queues][:TRAIN_ROWS]

    def row(index: int) -> Row:
        item = dataset[index]
        return Row(templates[index], item["question"], item["metadata"]["answer_cot"])

    return as_task([row(i) for i in chosen_train], [row(i) for i in chosen_heldout])
