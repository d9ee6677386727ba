import pytest
import torch
from tiny_models import adapted, random_vector
from tolerances import DENSE64

from hessian_lr.curvature import GaussNewtonOperator, HessianOperator


def dense_gauss_newton(model, batches):
    """Jᵀ·H_z·J in full, from a dense Jacobian of the logits and the softmax's own second derivative."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    values = [dict(model.named_parameters())[name].detach() for name in names]
    total, count = 0, 0
    for batch in batches:
        scored = batch["labels"][:, 1:] != -100

        def logits(*pieces, batch=batch, scored=scored):
            found = torch.func.functional_call(
                model,
                dict(zip(names, pieces, strict=True)),
                (),
                {**batch, "labels": None, "use_cache": False},
            )
            return found.logits[:, :-1][scored]

        rows = torch.autograd.functional.jacobian(logits, tuple(values))
        jacobian = torch.cat([r.flatten(2) for r in rows], dim=2)
        p = torch.softmax(logits(*values), dim=-1).detach()
        bend = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        total = total + torch.einsum("pvi,pvw,pwj->ij", jacobian, bend, jacobian)
        count += int(scored.sum())
    return total / count


def distance(found, truth):
    """‖found − truth‖ / ‖truth‖."""
    return float((found.double() - truth).norm() / truth.norm())


def test_gauss_newton_products_match_the_dense_matrix_which_has_no_negative_eigenvalue(batches):
    truth = dense_gauss_newton(adapted(), batches)
    for budget in (0, 10**12):
        operator = GaussNewtonOperator(adapted(), batches, memory_budget=budget)
        vector = random_vector(operator.size)
        for _ in range(2):
            assert distance(operator.matvec(vector), truth @ vector) < DENSE64
        expected = HessianOperator(adapted(), batches)
        assert distance(operator.gradient(), expected.gradient()) < DENSE64
        assert operator.loss == pytest.approx(expected.loss)
    assert float(torch.linalg.eigvalsh(truth)[0]) > -DENSE64


def test_the_gauss_newton_operators_gradient_is_the_losss_and_is_paid_for(batches):
    hessian = HessianOperator(adapted(), batches, memory_budget=0)
    gauss_newton = GaussNewtonOperator(adapted(), batches)
    assert torch.equal(gauss_newton.gradient(), hessian.gradient())
    assert gauss_newton.loss == hessian.loss
    assert gauss_newton.cost.gradient_equivalents == pytest.approx(1)
