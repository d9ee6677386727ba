"""The methods that PEFT itself builds."""

from __future__ import annotations

from typing import Any

from peft import GraloraConfig, LoraConfig, PeftModel, RandLoraConfig, TaskType, get_peft_model
from transformers import PreTrainedModel

from ..errors import RequestError
from ..setting import Setting
from .method import Method, Target
from .targets import words


def plain_lora(
    model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...], **options: Any
) -> PeftModel:
    """W + s·B·A with s = alpha / r, A (r × d_in) Kaiming-uniform and B (d_out × r) zero.

    Args:
        model: The model to adapt; it is changed.
        setting: Gives rank and alpha.
        targets: The modules to adapt.
        options: Further fields of PEFT's ``LoraConfig``.
    """
    config = LoraConfig(r=setting.rank, lora_alpha=_alpha(setting), **_common(setting, targets), **options)
    return get_peft_model(model, config)


def _rslora(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    # The scaling is alpha / √r here, not Setting.scaling.
    return plain_lora(model, setting, targets, use_rslora=True)


def _dora(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """m·V/‖V‖ with V = W + s·B·A, ‖V‖ the norm of each row, and m (d_out) trained beside A and B.

    PEFT treats ‖V‖ as a constant in the backward pass (DoRA's paper, section 4.3). So the gradient is
    not that of the loss the forward pass computes, and a Hessian-vector product by two backward passes
    is that of the loss with every ‖V‖ frozen at its present value: symmetric and well defined, but
    neither the Hessian of the loss nor the derivative of the gradient that training follows. Central
    differences of gradients, in which ‖V‖ moves, therefore disagree with it (by 26 and 40% at two points
    of a tiny GPT-2), and are not symmetric. This is the DoRA that PEFT trains; ``dora-exact`` has the
    same values and the whole gradient.
    """
    return plain_lora(model, setting, targets, use_dora=True)


def _pissa(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """s·B·A is the best rank-r approximation of W, and W keeps the residual.

    By the full singular value decomposition: it takes seconds for a model of 135 million parameters
    (the randomized one is several times faster, but is not the principal subspace, only near it).

    To save an adapter for the original weights, set ``init_lora_weights = True`` in its configuration
    before saving the start; see ``start_at`` for the rest. OLoRA's likewise.
    """
    return plain_lora(model, setting, targets, init_lora_weights="pissa")


def _olora(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """B and A are the first r columns of Q and rows of R in W = Q·R, and W keeps W − s·B·A."""
    return plain_lora(model, setting, targets, init_lora_weights="olora")


def _refuse_olora(setting: Setting, targets: tuple[Target, ...]) -> None:
    # PEFT factorizes the stored weight without transposing it: on a square Conv1D it goes through and
    # changes what the model computes.
    for target in targets:
        if target.transposed:
            raise RequestError(
                f"olora cannot adapt {target.name}: PEFT's OLoRA needs nn.Linear modules, and this one is a "
                "Conv1D with its weight stored as (in, out). Use another method for this model."
            )


def _gralora(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """A k × k grid of blocks, each with its own factors of rank r / k; as many parameters as LoRA's."""
    config = GraloraConfig(
        r=setting.rank,
        alpha=_alpha(setting),
        gralora_k=_gralora_blocks(setting.rank),
        **_common(setting, targets),
    )
    return get_peft_model(model, config)


def _gralora_blocks(rank: int) -> int:
    # PEFT's recommendation: 2 up to rank 32, 4 from rank 64.
    return 2 if rank < 64 else 4


def _refuse_gralora(setting: Setting, targets: tuple[Target, ...]) -> None:
    blocks = _gralora_blocks(setting.rank)
    if setting.rank % blocks:
        raise RequestError(
            f"gralora divides the rank over {blocks} blocks: rank must be a multiple of {blocks}, "
            f"not {setting.rank}"
        )
    for target in targets:
        if target.in_features % blocks or target.out_features % blocks:
            raise RequestError(
                f"gralora cuts each module into {blocks} × {blocks} blocks, but {target.name} is "
                f"{target.out_features} × {target.in_features}; leave it out of the target modules"
            )


def _randlora(model: PreTrainedModel, setting: Setting, targets: tuple[Target, ...]) -> PeftModel:
    """s·Σ_j B_j·diag(λ_j)·A·diag(γ_j) over n = ⌈min(d_in, d_out) / r⌉ fixed random bases.

    The rank is that of one basis: the sum has full rank, and a HIGHER rank means FEWER trained
    parameters, n·(r + min(d_in, d_out)) a module. Trained are λ (r × n), zero at first, and γ
    (n × min(d_in, d_out)), constant at first. The random bases are buffers that all modules share, drawn
    from the seed. PEFT's own derivative of the sum has no forward mode, and is right when differentiated
    backwards twice, as it is here. s = alpha / r, for which PEFT's default is 20 (alpha = 20·r), not the
    1 that an alpha left out means.
    """
    config = RandLoraConfig(
        r=setting.rank,
        randlora_alpha=_alpha(setting),
        projection_prng_key=setting.seed,
        **_common(setting, targets),
    )
    return get_peft_model(model, config)


def _alpha(setting: Setting) -> Any:
    # PEFT declares it an int, but only divides by r: any number serves.
    return setting.alpha


def _common(setting: Setting, targets: tuple[Target, ...]) -> dict[str, Any]:
    # Full names, so that PEFT adapts exactly the modules that were checked; for fused experts the user's
    # own, which only PEFT can read. Dropout is 0 and no bias is trained in every configuration's defaults.
    fused = any(target.fused for target in targets)
    return {
        "task_type": TaskType.CAUSAL_LM,
        "target_modules": words(setting.target_modules) if fused else [target.name for target in targets],
        "fan_in_fan_out": all(target.transposed for target in targets),
    }


BUILTIN = (
    Method(
        name="lora",
        summary="W + s·B·A, B = 0 at first",
        source="arXiv 2106.09685",
        zero_b=True,
        build=plain_lora,
        fused=True,
    ),
    Method(
        name="rslora",
        summary="LoRA with the scaling alpha / √r",
        source="arXiv 2312.03732",
        zero_b=True,
        build=_rslora,
        fused=True,
    ),
    Method(
        name="dora",
        summary="LoRA on the direction of W's rows, their length trained apart",
        source="arXiv 2402.09353",
        zero_b=True,
        build=_dora,
    ),
    Method(
        name="pissa",
        summary="LoRA started at the principal singular vectors of W",
        source="arXiv 2404.02948",
        zero_b=False,
        build=_pissa,
    ),
    Method(
        name="olora",
        summary="LoRA started at the QR factors of W",
        source="arXiv 2406.01775",
        zero_b=False,
        build=_olora,
        refuse=_refuse_olora,
    ),
    Method(
        name="gralora",
        summary="LoRA on a grid of blocks, each with factors of its own",
        source="arXiv 2505.20355",
        zero_b=True,
        build=_gralora,
        refuse=_refuse_gralora,
    ),
    Method(
        name="randlora",
        summary="full-rank sum of fixed random bases, their diagonal scales trained",
        source="arXiv 2502.00987",
        zero_b=True,
        build=_randlora,
    ),
)
