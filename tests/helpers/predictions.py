"""A prediction by curvature, without a model."""

from dataclasses import replace

from hessian_lr.measure.preconditioned import AdamSharpness
from hessian_lr.predict import Prediction


def predicted(lr=1e-3, lr_stability=2e-3, **changes):
    """A prediction by curvature, with what the join takes from it."""
    adam = AdamSharpness(
        lambda_preconditioned=38 / lr_stability,
        residual=0.0,
        upper=None,
        sampling_error=None,
        status="converged",
        lr_stability=lr_stability,
        lr_directional=None,
        lr_critical=None,
        lr_critical_start=1e-2,
        warmup_lr=1e-3,
        warmup_steps=10,
        matvecs=5,
        gradient_equivalents=10.0,
        seconds=1.0,
        peak_rss_bytes=1,
    )
    made = Prediction("combined", "converged", lr, 1e-5, 1e-1, "before", None, adam, 5, 10.0, 1.0, 1)
    return replace(made, **changes)
