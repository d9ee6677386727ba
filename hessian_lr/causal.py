"""Whether a model predicts each token from those before it alone."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn


def looks_ahead(model: nn.Module) -> bool:
    """Whether the first token's logits depend on a later token: a label that is read, not predicted.

    Told by a derivative, which is exactly zero behind a causal mask, while logits differ by rounding. Of a
    model that does not run on tokens alone, or names no embeddings, it is not told.

    Args:
        model: In evaluation mode. It is run on three tokens and left as it is.
    """
    embedded: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # some models scale it in place, which a leaf may not be

    try:
        handle = cast(Any, model).get_input_embeddings().register_forward_hook(keep)
    except (AttributeError, RuntimeError):  # it has none, or says that nobody wrote which
        return False
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
    # The later two tokens, whatever stands before the first, and whether or not rows come first.
    return bool((slope.flatten(0, -2)[-2:].abs() > 0).any())
