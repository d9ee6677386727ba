"""Which of a model's modules a setting adapts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .. import hub
from ..errors import RequestError
from .by_peft import adapted_by_peft
from .method import Target

ALL_LINEAR = "all-linear"
# What helps where a weight is shared.
UNTIE = "save the model with a copy of the weight there, and tie_word_embeddings false in its configuration"


def find_targets(model: PreTrainedModel, wanted: str | tuple[str, ...]) -> tuple[Target, ...]:
    """The modules that ``wanted`` names, in the model's own order.

    A mixture of experts whose layers transformers fuses into parameters has no linear modules for them;
    there PEFT says what the names mean.

    Args:
        model: A causal LM without an adapter.
        wanted: ``"all-linear"``, which is PEFT's meaning of it (every linear module but the output head,
            and the experts and routers that PEFT knows), or the ends of module names (``q_proj``,
            ``0.mlp.down_proj``).

    Raises:
        RequestError: a name matches nothing, PEFT refuses a module, or a module shares its weight with
            another.
    """
    linears: dict[str, nn.Linear | Conv1D] = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    }
    fused = _fused(model, wanted, linears)
    if fused:
        _refuse_shared_weights(model, {t.name: linears[t.name] for t in fused if not t.fused})
        return fused
    for suffix in _unmatched(wanted, linears):
        raise _no_such_module(suffix, linears)
    chosen = _chosen(model, wanted, linears)
    if not chosen:
        raise RequestError(f"this {type(model).__name__} has no linear module to adapt")
    _refuse_shared_weights(model, chosen)
    return tuple(_target(name, module) for name, module in chosen.items())


def words(wanted: str | tuple[str, ...]) -> str | list[str]:
    """The names as PEFT takes them: a text that is not ``all-linear`` would be a pattern there."""
    return ALL_LINEAR if wanted == ALL_LINEAR else list(_suffixes(wanted))


def _suffixes(wanted: str | tuple[str, ...]) -> tuple[str, ...]:
    return (wanted,) if isinstance(wanted, str) else wanted


def _unmatched(wanted: str | tuple[str, ...], linears: Iterable[str]) -> list[str]:
    if wanted == ALL_LINEAR:
        return []
    return [suffix for suffix in _suffixes(wanted) if not any(_ends_in(name, suffix) for name in linears)]


def _chosen(
    model: PreTrainedModel, wanted: str | tuple[str, ...], linears: dict[str, nn.Linear | Conv1D]
) -> dict[str, nn.Linear | Conv1D]:
    if wanted == ALL_LINEAR:
        head = model.get_output_embeddings()
        return {name: module for name, module in linears.items() if module is not head}
    return {
        name: module
        for name, module in linears.items()
        if any(_ends_in(name, suffix) for suffix in _suffixes(wanted))
    }


def _fused(
    model: PreTrainedModel, wanted: str | tuple[str, ...], linears: dict[str, nn.Linear | Conv1D]
) -> tuple[Target, ...]:
    """All targets where some of them are fused parameters; nothing where none is."""
    if all(parameter.dim() < 3 for parameter in model.parameters()):
        return ()
    names, unmatched = words(wanted), _unmatched(wanted, linears)
    try:
        found = adapted_by_peft(model, names)
    except Exception as error:  # PEFT raises what it likes
        if unmatched:
            raise _no_such_module(unmatched[0], linears, f" (PEFT: {hub.first_line(error)})") from error
        raise _refused_by_peft(model, _chosen(model, wanted, linears), error) from error
    if not any(one.fused for one in found):
        return ()
    # PEFT passes over names that match nothing as long as another does.
    idle = [one for one in unmatched if _or_none(model, [name for name in names if name != one]) == found]
    other = [one.name for one in found if not one.fused and one.name not in linears]
    for name in (*idle, *other):
        raise _no_such_module(name, linears)
    return found


def _or_none(model: PreTrainedModel, names: list[str]) -> tuple[Target, ...] | None:
    try:
        return adapted_by_peft(model, names)
    except Exception:  # PEFT refuses them
        return None


def _refused_by_peft(model: PreTrainedModel, chosen: Iterable[str], why: Exception) -> RequestError:
    """What to say where PEFT takes no adapter on some kinds of modules: Mamba's, of which it knows."""
    kinds = sorted({name.rpartition(".")[2] for name in chosen})
    able = [kind for kind in kinds if _or_none(model, [kind])]
    refused = ", ".join(kind for kind in kinds if kind not in able) or "these modules together"
    mend = f"; leave them out: --target-modules {','.join(able)}" if able else ""
    return RequestError(
        f"PEFT cannot adapt {refused} of a {type(model).__name__} ({hub.first_line(why)}){mend}"
    )


def _ends_in(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _target(name: str, module: nn.Linear | Conv1D) -> Target:
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return Target(name, int(d_in), int(d_out), transposed=True)
    return Target(name, module.in_features, module.out_features, transposed=False)


def _no_such_module(suffix: str, linears: Iterable[str], why: str = "") -> RequestError:
    present = sorted({name.rpartition(".")[2] for name in linears})
    if suffix == ALL_LINEAR:
        return RequestError(
            f"{ALL_LINEAR!r} stands alone, not in a list of names: give it by itself, or name the modules: "
            f"{', '.join(present)}"
        )
    return RequestError(
        f"target module {suffix!r} matches no linear module of this model{why}. "
        f"Its linear modules: {', '.join(present)}; or give {ALL_LINEAR!r}."
    )


def shared_weights(
    model: PreTrainedModel, chosen: Mapping[str, nn.Linear | Conv1D]
) -> Iterator[tuple[str, str]]:
    """Those of the modules whose weight is also another's, each with the other's name."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for name, module in chosen.items():
        others = [owner for owner in owners[id(module.weight)] if owner != name]
        if others:
            yield name, others[0]


def _refuse_shared_weights(model: PreTrainedModel, chosen: Mapping[str, nn.Linear | Conv1D]) -> None:
    # An initialization that takes B·A out of a tied head's weight would change the embedding too, and
    # an adapter on one of the two could not be merged.
    for name, other in shared_weights(model, chosen):
        raise RequestError(
            f"{name} cannot be adapted: it shares its weight with {other}. "
            f"Leave it out of the target modules; or {UNTIE}."
        )
