"""Whether a model predicts each token from those before it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def looks_ahead(model: PreTrainedModel) -> bool:
    """Whether the first token's logits depend on a later token: a label that is read, not predicted.

    Told by a derivative, which is exactly zero behind a causal mask, while logits differ by rounding. Of a
    model that does not run on tokens alone it is not told.

    Args:
        model: It is run on three tokens and left as it is.
    """
    embedded: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some models scale it in place, which a leaf may not be

    handle = model.get_input_embeddings().register_forward_hook(keep)
    ids = torch.arange(3, device=next(model.parameters()).device).unsqueeze(0)
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        # Squares, because the logits' sum may be constant.
        (slope,) = torch.autograd.grad(logits[0, 0].square().sum(), embedded[0])
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # it needs other inputs: what is wrong with that is told where it is measured
        return False
    finally:
        handle.remove()
    return bool((slope[0, 1:].abs() > 0).any())
