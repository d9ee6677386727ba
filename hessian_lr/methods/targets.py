"""Which of a model's linear modules a setting adapts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import RequestError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Target:
    """A linear module that gets an adapter.

    Attributes:
        name: Its full name in the model, ``model.layers.0.self_attn.q_proj``.
        in_features: d_in, the width of its input.
        out_features: d_out, the width of its output.
        transposed: Its weight is stored as (d_in, d_out): transformers' ``Conv1D`` of GPT-2.
    """

    name: str
    in_features: int
    out_features: int
    transposed: bool

    @property
    def width(self) -> int:
        """min(d_in, d_out), the largest rank its weight can have."""
        return min(self.in_features, self.out_features)


def find_targets(model: PreTrainedModel, wanted: str | tuple[str, ...]) -> tuple[Target, ...]:
    """The modules that ``wanted`` names, in the model's own order.

    Args:
        model: A causal LM without an adapter.
        wanted: ``"all-linear"``, which is PEFT's meaning of it (every linear module but the output
            head), or the ends of module names (``q_proj``, ``0.mlp.down_proj``).

    Raises:
        RequestError: a name matches no linear module, or a module shares its weight with another.
    """
    linears: dict[str, nn.Linear | Conv1D] = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    }
    if wanted == ALL_LINEAR:
        head = model.get_output_embeddings()
        chosen = {name: module for name, module in linears.items() if module is not head}
        if not chosen:
            raise RequestError(f"this {type(model).__name__} has no linear module to adapt")
    else:
        suffixes = (wanted,) if isinstance(wanted, str) else wanted
        for suffix in suffixes:
            if not any(_ends_in(name, suffix) for name in linears):
                raise _no_such_module(suffix, linears)
        chosen = {
            name: module
            for name, module in linears.items()
            if any(_ends_in(name, suffix) for suffix in suffixes)
        }
    _refuse_shared_weights(model, chosen)
    return tuple(_target(name, module) for name, module in chosen.items())


def _ends_in(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _target(name: str, module: nn.Linear | Conv1D) -> Target:
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return Target(name, int(d_in), int(d_out), transposed=True)
    return Target(name, module.in_features, module.out_features, transposed=False)


def _no_such_module(suffix: str, linears: Iterable[str]) -> RequestError:
    present = sorted({name.rpartition(".")[2] for name in linears})
    return RequestError(
        f"target module {suffix!r} matches no linear module of this model. "
        f"Its linear modules: {', '.join(present)}; or give {ALL_LINEAR!r}."
    )


def _refuse_shared_weights(model: PreTrainedModel, chosen: dict[str, nn.Linear | Conv1D]) -> None:
    # An initialization that takes B·A out of a tied head's weight would change the embedding too, and
    # an adapter on one of the two could not be merged.
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for name, module in chosen.items():
        others = [owner for owner in owners[id(module.weight)] if owner != name]
        if others:
            raise RequestError(
                f"{name} cannot be adapted: it shares its weight with {others[0]}. "
                "Leave it out of the target modules, or load the model with tie_word_embeddings=False."
            )
