"""What is known of the sharpness of an adapter's loss."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ..records import UNWRITTEN, Record


@dataclass(frozen=True)
class Curvature(Record):
    """The sharpness λ = λ_max(∇²L) over an adapter's parameters, and what is known of its error.

    Attributes:
        lambda_max: The Ritz value θ: a Rayleigh quotient, so θ ≤ λ.
        lambda_lower: λ is at least this, up to the rounding of the products: θ itself.
        lambda_upper: λ is at most this with probability ``confidence`` over the random start.
        confidence: That probability.
        lambda_min: Smallest Ritz value, at least the smallest eigenvalue.
        residual: ρ = ‖H·v − θ·v‖; some eigenvalue lies within ρ of θ.
        rounding: How far θ lay from its value in the lower precision that the eigenvector was found
            in; null where all products had one precision, and where that did not serve and θ was searched
            again in float32 (a note says so). What a base in a type narrower than float32 rounds comes
            besides.
        sampling_error: Standard error of v·H·v from its scatter over the microbatches; null with
            fewer than two.
        held_out: v·H·v on samples that the eigenvector v has not seen. θ is the largest value that any
            direction has on its own sample and so too large, on average, for the population; this
            one is on average no larger than the population's λ. Null where none were given.
        held_out_error: Its standard error, as ``sampling_error``.
        difference_error: Where products are central differences, how far the one with the eigenvector may be
            off as a share of θ (see ``CentralOperator.check``); null where they are exact.
        samples: Rows of the sample.
        status: ``"converged"``, ``"budget"`` (stopped at the limit; the bounds hold) or ``"failed"``.
        matvecs: Hessian-vector products spent.
        gradient_equivalents: All work, in gradients of the loss over the sample.
        seconds: Wall time.
        peak_rss_bytes: The process's largest resident memory so far.
        loss: L at the point, in nats a token.
        tokens: Tokens of the sample, padding included.
        parameters: n, the number of trainable parameters.
        unreached: How many of them belong to an embedding and get no gradient from the sample, as those of
            tokens that are not in it: training on such rows leaves them where they are.
        notes: What a reader should know of how it was obtained.
        out_of_memory: It failed for want of memory. Not written.
    """

    lambda_max: float | None
    lambda_lower: float | None
    lambda_upper: float | None
    confidence: float | None
    lambda_min: float | None
    residual: float | None
    sampling_error: float | None
    status: str
    matvecs: int
    gradient_equivalents: float
    seconds: float
    peak_rss_bytes: int
    loss: float | None
    tokens: int
    parameters: int
    rounding: float | None = None
    held_out: float | None = None
    held_out_error: float | None = None
    difference_error: float | None = None
    samples: int = 0
    unreached: int = 0
    notes: tuple[str, ...] = ()
    out_of_memory: bool = field(default=False, compare=False, metadata=UNWRITTEN)

    @classmethod
    def failed(cls, reason: str, **spent: Any) -> Curvature:
        """A result without a number: why, and whichever costs and sizes are known."""
        unknown: dict[str, Any] = dict.fromkeys(field.name for field in fields(cls))
        nothing = {"matvecs": 0, "gradient_equivalents": 0.0, "seconds": 0.0, "peak_rss_bytes": 0}
        sizes = {"samples": 0, "tokens": 0, "parameters": 0, "unreached": 0, "out_of_memory": False}
        return cls(**(unknown | nothing | sizes | spent | {"status": "failed", "notes": (reason,)}))
