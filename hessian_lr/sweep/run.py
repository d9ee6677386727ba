"""One training run: the run's name, and what is kept of it."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import HessianLRError, RequestError
from ..exhausted import memory_errors
from ..records import Record, digest, is_number
from ..setting import Setting
from .recipe import WARMUP_FRACTION, recipe

if TYPE_CHECKING:
    import torch

    from ..batches import Batch
    from ..data import TaskData
    from ..models import LoadedModel
    from .trainer import Done


@dataclass(frozen=True)
class RunResult(Record):
    """What is kept of one training run.

    Attributes:
        key: Content hash of everything that decides the run (see ``run_key``); names its file.
        setting: The setting; its seed is this run's seed.
        lr: Peak learning rate of the schedule.
        initial_loss: Held-out loss (nats per labelled token) of the adapter before training.
        final_loss: The same after training; None where it is not finite.
        steps: Optimizer steps done: fewer than the setting's where the loss became NaN or infinite.
        diverged: The loss became NaN or infinite, or training ended above ``initial_loss``.
        seconds: Wall time of the run with its two evaluations.
        train_tokens: Tokens trained on, without padding.

    Raises:
        RequestError: a number is missing or of the wrong kind (a damaged file).
    """

    key: str
    setting: Setting
    lr: float
    initial_loss: float
    final_loss: float | None
    steps: int
    diverged: bool
    seconds: float
    train_tokens: int

    def __post_init__(self) -> None:
        others = {"lr": self.lr, "initial_loss": self.initial_loss, "seconds": self.seconds}
        check_numbers(self.final_loss, self.diverged, **others)


def check_numbers(final_loss: float | None, diverged: bool, **others: float) -> None:
    """Refuse a run of which a number is missing or out of its range; ``lr`` is among the ``others``.

    Raises:
        RequestError: names the number.
    """
    for name, value in others.items():
        if not is_number(value):
            raise RequestError(f"a run's {name} must be a finite number, not {value!r}")
    if not others["lr"] > 0:
        raise RequestError(f"a run's lr must be positive, not {others['lr']}")
    if not (is_number(final_loss) or (final_loss is None and diverged)):
        raise RequestError(f"a run's final_loss must be finite, or null if it diverged, not {final_loss!r}")


HELDOUT_BATCH = 8


def run_key(setting: Setting, lr: float, data_digest: str, model_fingerprint: str) -> str:
    """The name of a run: a hash of all that decides how it goes, and of nothing else.

    Args:
        setting: Its model and data are told by their contents (the next two), so a folder that
            moved keeps its runs; its ``device`` and ``samples`` do not matter, its ``dtype`` does.
        lr: Peak learning rate.
        data_digest: ``TaskData.digest``.
        model_fingerprint: ``LoadedModel.fingerprint``.

    Returns:
        20 hex digits.
    """
    identity = setting.training_identity(contents=False)
    identity["dtype"] = str(precision(setting))
    told = {**recipe(setting), "warmup": WARMUP_FRACTION}
    return digest([identity, told, float(lr), data_digest, model_fingerprint], 20)


def train_once(
    setting: Setting, lr: float, loaded: LoadedModel, data: TaskData, initial_loss: float | None = None
) -> RunResult:
    """Train one adapter with a cosine schedule and linear warm-up over 3% of the steps.

    The warm-up is at least one step, and its first has the learning rate 0, as the Trainer's own.

    The recipe of AdamW is ``recipe.RECIPE``: betas (0.9, 0.999), no weight decay, gradients clipped to norm 1
    (the Trainer's default, so what users' runs do); that of plain gradient descent is ``recipe.SGD_RECIPE``,
    without clipping. The order of the data follows the setting's seed.
    A run whose loss becomes NaN or infinite stops there. ``loaded`` is copied, not changed, and
    the caller's random state is left as it was.

    Args:
        setting: What to train, its seed included.
        lr: Peak learning rate.
        loaded: The model of the setting.
        data: The data of the setting.
        initial_loss: Held-out loss before training where a run of the same setting has told it
            already: it does not depend on the learning rate. None: measured here.

    Raises:
        RequestError: the method does not fit the model.
        HessianLRError: out of memory, or the loss before training is not finite.
    """
    import torch

    started = time.perf_counter()
    try:
        with memory_errors():
            initial, final, done = _train(setting, lr, loaded, data, initial_loss)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise HessianLRError(
            f"out of memory training {setting.method!r} with batch size {setting.batch_size} and samples of "
            f"up to {setting.max_length} tokens; lower either, or use --dtype bfloat16"
        ) from error
    finally:
        gc.collect()  # mixed precision ties the copied model into a cycle: one a run would pile up
    return RunResult(
        key=run_key(setting, lr, data.digest, loaded.fingerprint),
        setting=setting,
        lr=lr,
        initial_loss=initial,
        final_loss=final if math.isfinite(final) else None,
        steps=done.steps,
        diverged=not final <= initial,
        seconds=time.perf_counter() - started,
        train_tokens=done.tokens,
    )


def _train(
    setting: Setting, lr: float, loaded: LoadedModel, data: TaskData, initial: float | None
) -> tuple[float, float, Done]:
    """Held-out loss before and after (NaN where the training stopped on one), and how it went."""
    from ..curvature.loss import mean_loss
    from ..methods import adapted
    from .trainer import fit

    dtype, pad_id = precision(setting), loaded.tokenizer.pad_token_id
    model, heldout = adapted(setting, loaded, data), heldout_batches(loaded, data)
    initial = mean_loss(model, heldout, dtype) if initial is None else initial
    if not math.isfinite(initial):
        raise HessianLRError(
            f"the held-out loss of {setting.method!r} before training is {initial}: look for NaN or huge "
            "values in the model's weights, or use --dtype float32"
        )
    done = fit(model, data.train, setting, lr, dtype=dtype, pad_id=pad_id)
    return initial, mean_loss(model, heldout, dtype) if done.finite else math.nan, done


def heldout_batches(loaded: LoadedModel, data: TaskData) -> list[Batch]:
    """The held-out rows, those of like length together."""
    from ..data import make_batches

    # So little is spent on padding; the loss weighs tokens, however they are batched.
    rows = sorted(data.heldout, key=lambda row: len(row.input_ids))
    return make_batches(rows, HELDOUT_BATCH, loaded.tokenizer.pad_token_id)


def precision(setting: Setting) -> torch.dtype:
    """The precision of the matrix products, which "auto" leaves to the hardware."""
    from ..devices import resolve_device, resolve_dtype

    return resolve_dtype(setting.dtype, resolve_device(setting.device))


def precision_name(setting: Setting) -> str:
    """The same as one would ask for it: ``"float32"`` or ``"bfloat16"``."""
    return str(precision(setting)).removeprefix("torch.")
