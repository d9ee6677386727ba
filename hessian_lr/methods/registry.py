"""The registry of methods: check a setting against a model, and build its adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from ..batches import Batch
from ..data import Example, TaskData, make_batches
from ..errors import RequestError, unknown_name
from ..setting import ADAMW, Setting
from .builtin import BUILTIN
from .dora_exact import DORA_EXACT
from .init_ab import INIT_AB
from .loft import LOFT
from .lora_ga import LORA_GA
from .lora_ga_peft import LORA_GA_PEFT
from .lora_plus import LORA_PLUS
from .method import Method, Target
from .milora import MILORA
from .own import OWN, check_own
from .targets import find_targets

if TYPE_CHECKING:
    from ..models import LoadedModel

# A method PEFT lacks is one more file with a Method in it, and one more name here.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (*BUILTIN, DORA_EXACT, MILORA, INIT_AB, LORA_GA, LORA_GA_PEFT, LORA_PLUS, LOFT)
}
# The gradient is the same however the rows are cut, to rounding; so few take little memory.
_BATCH = 4


def check(model: PreTrainedModel, setting: Setting) -> None:
    """Refuse, before any work, a setting whose adapter cannot be built on ``model``.

    Raises:
        RequestError: the method is unknown, the model has an adapter already, a target module's name
            matches nothing, the rank exceeds a linear target's width, or the method itself cannot
            adapt one of the targets.
    """
    _checked(model, setting)


def initial_batches(setting: Setting, rows: Sequence[Example], pad_id: int) -> list[Batch]:
    """What ``build`` needs of the training data: the first rows, or nothing for most methods.

    A measurement and a run of one setting get the same rows here, so that both start at one adapter.

    Args:
        setting: Gives the method.
        rows: The training rows, in their order.
        pad_id: The tokenizer's padding token.

    Raises:
        RequestError: the method is unknown.
    """
    # By length, so that a batch holds little padding.
    first = sorted(rows[: method_of(setting).rows], key=lambda row: len(row.input_ids))
    return make_batches(first, _BATCH, pad_id)


def copied(model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
    """A model for ``build`` to take over, while ``model`` stays as it is for the next setting.

    Its weights are the same memory where the method leaves them alone: those whose last factor starts at
    zero do, and all others start from weights of their own.
    """
    shared: dict[int, Any] = {}
    if method_of(setting).zero_b:
        # What a copy finds here under an object's id, it takes for the object's copy.
        shared = {id(p): torch.nn.Parameter(p.data, p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def adapted(setting: Setting, loaded: LoadedModel, data: TaskData) -> PeftModel:
    """The setting's adapter at its start, on a copy of the model (see ``copied``).

    Raises:
        RequestError, NonFiniteError: as ``build``.
    """
    start = initial_batches(setting, data.train, loaded.tokenizer.pad_token_id)
    return build(copied(loaded.model, setting), setting, start)


def build(model: PreTrainedModel, setting: Setting, batches: Sequence[Batch] = ()) -> PeftModel:
    """Give ``model`` the adapter that ``setting`` describes.

    The model is taken over: its modules are replaced, its weights frozen, and changed where the method
    starts away from zero. What it computes stays the same to rounding. Its training or evaluation mode
    stays as it was. The adapter's random numbers depend on ``setting.seed`` only, and the caller's
    generators are left as they were.

    Args:
        model: A causal LM with float32 weights.
        setting: Gives method, rank, alpha, target modules and seed.
        batches: Training data for a method that starts from it, from ``initial_batches``.

    Returns:
        The PEFT model, whose trainable parameters are the adapter's and no others, in float32.

    Raises:
        RequestError: as ``check``, or the method needs batches and there are none, or none of their
            tokens is labelled.
        NonFiniteError: the gradient that the method starts from is not finite.
    """
    method, targets = _checked(model, setting)
    if method.rows and not batches:
        raise RequestError(
            f"{method.name} starts from the gradient on training data: give build() the batches that "
            "initial_batches() makes of it"
        )
    training = model.training
    with _seeded(setting.seed, next(model.parameters()).device):
        adapted = method.build(model, setting, targets, *([batches] if method.rows else []))
    return adapted.train(training)


def _checked(model: PreTrainedModel, setting: Setting) -> tuple[Method, tuple[Target, ...]]:
    method = method_of(setting)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise RequestError(
            "this model carries an adapter already: merge or unload it, or load the model anew"
        )
    if method is OWN:
        return OWN, check_own(model, setting)
    targets = find_targets(model, setting.target_modules)
    if not method.fused:
        _refuse_fused(method, targets)
    # PEFT has no limit, and a router is as wide as there are experts: LoRA's usual ranks exceed that.
    linear = [target for target in targets if not target.fused]
    narrowest = min(linear, key=lambda target: target.width, default=None)
    if narrowest is not None and setting.rank > narrowest.width:
        raise RequestError(
            f"rank {setting.rank} is larger than {narrowest.name} is wide "
            f"({narrowest.out_features} × {narrowest.in_features}): "
            f"the largest possible rank is {narrowest.width}"
        )
    if method.refuse is not None:
        method.refuse(setting, targets)
    return method, targets


def _refuse_fused(method: Method, targets: tuple[Target, ...]) -> None:
    linear = sorted({target.name.rpartition(".")[2] for target in targets if not target.fused})
    for target in targets:
        if target.fused:
            able = ", ".join(one.name for one in METHODS.values() if one.fused)
            mend = f", or name linear modules: --target-modules {','.join(linear)}" if linear else ""
            raise RequestError(
                f"{method.name} needs linear modules and cannot adapt {target.name}, which holds a mixture's "
                f"experts or their router in one parameter; use one of {able}{mend}"
            )


def method_of(setting: Setting) -> Method:
    """The registered method that ``setting`` names, or the user's own adapter.

    Raises:
        RequestError: the method is unknown, or is an optimizer of its own and the setting wants another.
    """
    if setting.peft_config is not None:
        return OWN
    if setting.method not in METHODS:
        raise unknown_name("method", setting.method, METHODS)
    method = METHODS[setting.method]
    if method.optimizer is not None and setting.optimizer != ADAMW:
        raise RequestError(
            f"{method.name} is plain LoRA with an optimizer of its own, which follows AdamW: it cannot train "
            f"with optimizer {setting.optimizer}; use method lora, or leave the optimizer {ADAMW}"
        )
    return method


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of ``device``, and put them back afterwards."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would seed every GPU, those that were not forked as well.
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
