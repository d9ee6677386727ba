"""Curvature module by module: every adapted module's own diagonal block of the Hessian, all at once.

For module i with adapter parameters θᵢ, λᵢ = λ_max(∂²L/∂θᵢ²). The blocks share one graph of the
gradient: the product of block i is the derivative of gᵢ·vᵢ over θᵢ alone, for which autograd runs
only what lies between module i and the loss, twice over. All modules go through Lanczos in step, so
that a graph that memory cannot hold is rebuilt once for all of them rather than once for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..curvature.caveats import model_notes
from ..curvature.operator import HessianOperator
from ..distributed import FAILURES, failed
from ..errors import RequestError
from ..records import Result
from ..setting import check_counts
from ..spectrum.certificate import CONFIDENCE
from ..spectrum.stopping import check_stopping
from .adapter_modules import cost_shares, owned_parameters, places
from .cost import peak_rss_bytes
from .module_block import Block, ModuleSharpness

__all__ = ["ModuleProgress", "ModuleSharpness", "ModuleSpectrum", "module_sharpness"]

#: Called after every product with (modules that are done, all modules, where the work stands).
ModuleProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ModuleSpectrum(Result):
    """λᵢ of every adapted module, in the model's order, with what all of them together cost.

    Attributes:
        modules: One record for each module.
        confidence: Probability with which each ``lambda_upper`` holds, taken by itself.
        matvecs: Products with blocks, over all modules.
        gradient_equivalents: All work, in gradients of the loss over the sample. A block's product
            counts as the share of the model's weights that stand between the module and the loss
            (the head's by the share of tokens that are labelled), as a whole product counts 1.
        seconds: Wall time.
        peak_rss_bytes: The process's largest resident memory so far.
        loss: L at the point, in nats a token; null where it is not finite.
        tokens: Tokens of the sample, padding included.
        notes: What a reader should know of how it was obtained.
    """

    modules: tuple[ModuleSharpness, ...]
    confidence: float
    matvecs: int
    gradient_equivalents: float
    seconds: float
    peak_rss_bytes: int
    loss: float | None
    tokens: int
    notes: tuple[str, ...] = ()


def module_sharpness(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    rtol: float = 0.05,
    max_products: int = 20,
    dtype: torch.dtype = torch.float32,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: ModuleProgress | None = None,
) -> ModuleSpectrum:
    """Measure λᵢ, the largest eigenvalue of ∂²L/∂θᵢ², for every adapted module of a PEFT model.

    The model and the random state are left exactly as they were found. Beside the graphs, memory
    holds a Lanczos basis of at most ``max_products`` vectors for every module that has not converged.

    Args:
        model: A causal language model with a PEFT adapter. A parameter belongs to the adapted module
            it stands in; those that stand in several or in none are left out, and a note says so.
        batches: The sample as dictionaries of ``input_ids``, ``attention_mask``, ``labels``, each
            (samples, tokens); any split into microbatches gives the same λᵢ.
        rtol: Relative error of λᵢ at which a module has converged (the rule is that of
            ``spectrum.lanczos``) and takes no part in later steps.
        max_products: Products spent on the search for one module's λᵢ at most.
        dtype: Precision of the products: float32, bfloat16 (autocast), or float64. Those in bfloat16 only
            find the eigenvectors: every θ and ρ is then that of one product in float32, and modules
            whose error proves larger than rtol are searched again in float32.
        memory_budget: Bytes that kept graphs may fill (0: rebuild all; None: decide here).
        seed: With each module's name, the seed of its random start vector.
        progress: Called after each module's product with (modules done, modules, where it stands).

    Returns:
        A ``ModuleSpectrum``. A failure of the work (a non-finite loss, no memory) leaves the status
        ``"failed"`` and no number with the modules that had not converged, its reason in ``notes``.

    Raises:
        RequestError: nothing trainable, no adapted module, nothing labelled, a bad tolerance, limit or seed.
    """
    check_stopping(rtol, max_products)
    check_counts(seed=seed)
    began = time.perf_counter()
    operator = HessianOperator(model, batches, dtype=dtype, memory_budget=memory_budget)
    blocks, notes = _blocks(model, operator, rtol=rtol, max_products=max_products, seed=seed)
    used, loss = [operator], None
    try:
        _search(operator, blocks, progress)
        loss = operator.loss
        if operator.dtype is torch.bfloat16:
            operator.release()
            exact = HessianOperator(model, batches, dtype=torch.float32, memory_budget=memory_budget)
            used.append(exact)
            notes += _verified(exact, blocks, progress)
    except FAILURES as error:
        notes.append(failed(error))
        for block in blocks:
            # No number that float32 has not confirmed.
            if operator.dtype is torch.bfloat16 and block.rounding is None:
                block.found = None
    if bad := [block.name for block in blocks if block.failed]:
        notes.append(f"products with the blocks of {len(bad)} modules are not finite, first {bad[0]}")
    if loss is not None and (why := operator.plan.note()):
        notes.append(why.replace("for each product", "for each step"))
    notes += model_notes(model)
    work = sum(one.cost.gradient_equivalents for one in used)
    work += sum(block.share * block.products for block in blocks)
    return ModuleSpectrum(
        modules=tuple(block.result() for block in blocks),
        confidence=CONFIDENCE,
        matvecs=sum(block.products for block in blocks),
        gradient_equivalents=round(work, 3),
        seconds=round(time.perf_counter() - began, 3),
        peak_rss_bytes=peak_rss_bytes(),
        loss=loss,
        tokens=operator.tokens,
        notes=tuple(notes),
    )


def _search(operator: HessianOperator, blocks: Sequence[Block], progress: ModuleProgress | None) -> None:
    """Lanczos steps in lock-step until every block is done."""
    step = 0
    while active := [block for block in blocks if not block.done]:
        step += 1
        report = _telling(progress, f"step {step}", len(blocks) - len(active), len(blocks))
        for block, image in zip(active, _multiply(operator, active, report), strict=True):
            block.advance(image)


def _verified(exact: HessianOperator, blocks: Sequence[Block], progress: ModuleProgress | None) -> list[str]:
    """Every θ and ρ from one product in float32, in which those that do not stand it are searched again."""
    found = [block for block in blocks if block.found is not None]
    images = _multiply(exact, found, _telling(progress, "float32", 0, len(blocks)))
    again = [block for block, image in zip(found, images, strict=True) if not block.verify(image)]
    for block in again:
        block.start()
    _search(exact, again, progress)
    for block in again:
        block.rounding = None
    if not again:
        return []
    return [f"bfloat16 did not serve {len(again)} modules, first {again[0].name}: searched again in float32"]


def _multiply(
    operator: HessianOperator, blocks: Sequence[Block], report: Callable[[str], None]
) -> list[Tensor]:
    """Hᵢᵢ·vᵢ of each block, from one pass over the microbatches' graphs."""
    images = [torch.zeros_like(block.vector) for block in blocks]
    with operator.over_ranks(*images), operator.scope():
        for _, gradient in operator.graphs():
            for block, image in zip(blocks, images, strict=True):
                image += block.product(gradient)
                report(block.name)
            # Else it would still be in memory while the next one is built.
            del gradient
    return images


def _telling(progress: ModuleProgress | None, stage: str, done: int, modules: int) -> Callable[[str], None]:
    return lambda name: None if progress is None else progress(done, modules, f"{stage}: {name}")


def _blocks(
    model: nn.Module, operator: HessianOperator, *, rtol: float, max_products: int, seed: int
) -> tuple[list[Block], list[str]]:
    """The adapted modules that own trainable parameters, and a note on the parameters left out.

    Raises:
        RequestError: there is none.
    """
    owned = owned_parameters(model, operator.parameters)
    if not owned:
        raise RequestError(
            "no trainable parameter belongs to one adapted module: wrap the model with a PEFT adapter that "
            "changes its linear modules (LoRA and its kin) first"
        )
    shares = cost_shares(model, owned, operator.labels / operator.tokens)
    blocks = [
        Block(
            name,
            layer,
            kind,
            positions,
            [operator.parameters[position] for position in positions],
            shares[name],
            rtol=rtol,
            max_products=max_products,
            seed=seed,
        )
        for (name, positions), (layer, kind) in zip(owned.items(), places(list(owned)), strict=True)
    ]
    left_out = operator.size - sum(block.size for block in blocks)
    notes = [f"{left_out} trainable parameters belong to no one module and are left out"] if left_out else []
    return blocks, notes
