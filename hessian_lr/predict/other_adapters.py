"""Trainable parameters of other kinds than those of the runs that the constants come from."""

from __future__ import annotations

from torch import nn

#: PEFT's types of the methods that were swept (experiments/lr_bench).
TRIED = ("LORA", "GRALORA", "RANDLORA")


def other_adapter(model: nn.Module) -> tuple[str, ...]:
    """A note, where the model trains something else than LoRA's kin: the range says nothing of such runs."""
    configs = getattr(model, "peft_config", None)
    # A mixed model's are several at once; a plain model has none.
    kinds = sorted({str(one.peft_type.value) for one in configs.values()}) if configs else ["no PEFT adapter"]
    if not (strange := [kind for kind in kinds if kind not in TRIED]):
        return ()
    return (
        f"the constants were fitted to LoRA and its kin, none with this ({', '.join(strange)}): "
        "the range does not hold four times in five here",
    )
