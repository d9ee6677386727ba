"""The user's own adapter, as PEFT itself would build it from its configuration."""

from __future__ import annotations

from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .. import hub
from ..errors import HessianLRError, RequestError, unknown_name
from ..peft_config import METHOD, PeftSource
from ..setting import Setting
from .by_peft import has_fused
from .method import Method, Target
from .targets import UNTIE, shared_weights

# Starts that need no data and no other file (some of PEFT's read a pickle).
_STARTS = (True, False, "gaussian", "pissa", "olora", "orthogonal")
_DRAWN = "pissa_niter_"  # and a number: a PiSSA by a randomized decomposition
# What a setting or this module decides, whatever stands in the file.
_OURS = ("task_type", "inference_mode", "base_model_name_or_path", "auto_mapping", "revision", "peft_version")
_TAKEN = (
    *_OURS,
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("target_modules", "target_parameters", "exclude_modules", "modules_to_save"),
    *("layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "init_lora_weights", "trainable_token_indices"),
)


def _own(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """The adapter of ``setting.peft_config``, at its trained weights where the folder has some.

    Dropout is off while curvature is measured and on in training, as the configuration says.
    """
    source = _source(setting)
    adapted = get_peft_model(model, _config(source))
    if source.weights is not None:
        set_peft_model_state_dict(adapted, load_file(source.weights))
    return adapted


def check_own(model: PreTrainedModel, setting: Setting) -> tuple[Target, ...]:
    """Refuse an adapter that PEFT cannot put on the model, or whose weights are another model's.

    The adapter is put on a model of the same shape without memory, so PEFT itself says what fits.

    Returns:
        No targets: which modules are adapted is PEFT's to find.

    Raises:
        RequestError: names the file and what does not fit.
    """
    source = _source(setting)
    config = _config(source)
    # The start is no part of the shape, and most need values to compute with.
    start = config.init_lora_weights
    config.init_lora_weights = True
    try:
        with torch.device("meta"):
            shape: Any = type(model)(model.config)
            adapted = get_peft_model(shape, config)
    except Exception as error:  # PEFT raises what it likes
        raise RequestError(
            f"PEFT cannot put the adapter of {source.path} on {model.config.name_or_path or 'this model'}: "
            f"{hub.first_line(error)}"
        ) from error
    _check_start(source, start, adapted, model)
    if source.weights is not None:
        _check_weights(source, adapted)
    return ()


def _check_start(source: PeftSource, start: bool | str, adapted: PeftModel, model: PreTrainedModel) -> None:
    if source.weights is not None and isinstance(start, str) and start.startswith(_DRAWN):
        raise RequestError(
            f"{source.weights} were trained from init_lora_weights {start!r}, which takes out of the model "
            "what a random search found then and finds otherwise now. Expected an adapter for the original "
            "weights: save it with path_initial_model_for_weight_conversion; or give the configuration alone "
            "for a fresh start"
        )
    if isinstance(start, str) and start != "gaussian" and has_fused(adapted):
        raise RequestError(
            f"{source.config}: init_lora_weights {start!r} needs linear modules, and some targets hold a "
            "mixture's experts or their router in one parameter; set it to true, or name linear modules"
        )
    named = adapted.get_base_model().named_modules()
    layers = {name: layer for name, layer in named if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        if start == "orthogonal" and any(rank % 2 for rank in layer.r.values()):
            raise RequestError(
                f"{source.config}: init_lora_weights 'orthogonal' needs an even rank, and {name} has "
                f"{', '.join(map(str, layer.r.values()))}"
            )
        # PEFT factorizes the stored weight: on a square one it goes through, and the model is another.
        if start == "olora" and isinstance(layer.get_base_layer(), Conv1D):
            raise RequestError(
                f"{source.config}: init_lora_weights 'olora' cannot adapt {name}: PEFT's OLoRA needs "
                "nn.Linear modules, and this one is a Conv1D with its weight stored as (in, out); set it "
                "to true, or take 'pissa'"
            )
    # Trained weights belong to the model that their start has made.
    if source.weights is None and isinstance(start, str) and start.startswith(("pissa", "olora")):
        linears = {
            name: module
            for name, module in model.named_modules()
            if name in layers and isinstance(module, (nn.Linear, Conv1D))
        }
        # The start is taken out of the weight, and so out of the other module too.
        for name, other in shared_weights(model, linears):
            raise RequestError(
                f"{source.config}: init_lora_weights {start!r} would make another model: {name} shares its "
                f"weight with {other}. Set it to true; leave {name} out of the target modules; or {UNTIE}"
            )


_MEND = "the adapter belongs to another model: give the one it was trained on"


def _check_weights(source: PeftSource, adapted: PeftModel) -> None:
    found = _shapes(source, adapted)
    needed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # Beside an adapted head or embedding PEFT saves its frozen weight too, and puts it back.
    allowed = get_peft_model_state_dict(adapted, save_embedding_layers=True)
    wanted = {name: tuple(value.shape) for name, value in allowed.items()}
    if absent := sorted(needed.keys() - found.keys()):
        raise RequestError(f"{source.weights} lacks {len(absent)} tensors (first: {absent[0]}); {_MEND}")
    if extra := sorted(found.keys() - wanted.keys()):
        raise RequestError(
            f"{source.weights} has {len(extra)} tensors that this model has not (first: {extra[0]}); {_MEND}"
        )
    for name, shape in found.items():
        if shape != wanted[name]:
            raise RequestError(f"{source.weights}: {name} is {shape}, expected {wanted[name]}; {_MEND}")


def _shapes(source: PeftSource, adapted: PeftModel) -> dict[str, tuple[int, ...]]:
    """The tensors in the file, by the names that they have in the model."""
    try:
        with safe_open(source.weights, framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise HessianLRError(
            f"cannot read {source.weights}: {hub.first_line(error)}; it is incomplete or damaged: save or "
            "copy it again"
        ) from error
    if not has_fused(adapted):
        return stored
    # Adapters from before transformers fused the experts have one for each, which PEFT puts together.
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    empty = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    try:
        joined = convert_peft_adapter_state_dict_for_transformers(
            adapted, adapted.peft_config["default"], empty
        )
    except Exception as error:  # PEFT raises what it likes
        raise RequestError(f"{source.weights} does not fit ({hub.first_line(error)}); {_MEND}") from error
    return {name: tuple(value.shape) for name, value in joined.items()}


def _source(setting: Setting) -> PeftSource:
    assert isinstance(setting.peft_config, PeftSource)
    return setting.peft_config


def _config(source: PeftSource) -> LoraConfig:
    """The file as a configuration to train with.

    Raises:
        RequestError: a field is unknown, or asks for what cannot be measured or read here.
    """
    values, usual = source.values(), vars(LoraConfig())
    for name, value in values.items():
        if name in _TAKEN:
            continue
        # A newer PEFT writes fields that this one lacks; at rest they change nothing.
        if name not in usual and value not in (None, False, {}, []):
            raise RequestError(
                f"{source.config}: {unknown_name('field', name, usual)} PEFT {peft.__version__} has no such "
                "field; correct it, or upgrade PEFT"
            )
        if name in usual and value != usual[name] and value not in (None, False, {}, []):
            raise RequestError(f"{source.config}: {name} is not supported; take it out, or set it to null")
    start = values.get("init_lora_weights", True)
    drawn = isinstance(start, str) and start.startswith(_DRAWN)
    if drawn and not start.removeprefix(_DRAWN).isdecimal():
        raise RequestError(f"{source.config}: {start!r} needs a number of iterations, such as {_DRAWN}4")
    if start not in _STARTS and not drawn:
        raise RequestError(
            f"{source.config}: init_lora_weights {start!r} starts from data or other files, which are not "
            f"read; expected one of {', '.join(map(str, _STARTS))}"
        )
    if values.get("task_type") not in (None, TaskType.CAUSAL_LM):
        raise RequestError(
            f"{source.config} is for the task {values['task_type']}; expected {TaskType.CAUSAL_LM.value}"
        )
    kept = {name: value for name, value in values.items() if name in _TAKEN and name not in _OURS}
    try:
        return LoraConfig(**kept, task_type=TaskType.CAUSAL_LM)
    except Exception as error:
        raise RequestError(f"{source.config} is not a LoraConfig: {hub.first_line(error)}") from error


OWN = Method(
    name=METHOD,
    summary="your own LoraConfig or adapter folder",
    source="the user's file",
    zero_b=False,
    build=_own,
)
