"""What makes a Trainer's run another than those that predictions are for."""

from __future__ import annotations

from transformers import Trainer, TrainingArguments

from ..curvature.caveats import added_losses
from ..setting import BETAS, EPSILON
from .schedule import stays_up

_FOR = "it is for plain cross-entropy"
# Up to here the best learning rate of a small model's runs stayed where it was; at 1e-3 it was another. It
# stayed, too, with noise on the embeddings (NEFTune), weight decay, another clipping and a linear schedule.
_LARGEST_EPSILON = 1e-5


def differences(args: TrainingArguments, trainer: Trainer) -> list[str]:
    """Each, with what predictions are for instead; none where nothing is known to differ."""
    found = []
    if args.label_smoothing_factor:
        found.append(f"label_smoothing_factor={args.label_smoothing_factor:g}: {_FOR}")
    if getattr(trainer, "compute_loss_func", None) is not None:
        found.append(f"compute_loss_func: {_FOR}")
    # To call it and see would count in what subclasses gather for their logs.
    owner = next(kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind))
    if owner is not Trainer and owner.__module__.partition(".")[0] != "trl":
        found.append(f"{owner.__name__}.compute_loss, if that is another loss: {_FOR}")
    # TRL's name for a loss of its own.
    if (kind := getattr(args, "loss_type", None)) not in (None, "nll", "chunked_nll"):
        found.append(f"loss_type={kind!r}: {_FOR}")
    if trainer.model is not None:
        found += [f"{loss}: {_FOR}" for loss in added_losses(trainer.model)]
    if (args.adam_beta1, args.adam_beta2) != BETAS:
        found.append(
            f"Adam's betas {args.adam_beta1:g}, {args.adam_beta2:g}: it is for {BETAS[0]}, {BETAS[1]}"
        )
    if args.adam_epsilon > _LARGEST_EPSILON:
        found.append(f"adam_epsilon={args.adam_epsilon:g}: it is for {EPSILON:g}")
    if stays_up(trainer.lr_scheduler, trainer.state.max_steps):
        found.append("a constant schedule: it is for one that falls to 0; the lower half of the range fits")
    return found
