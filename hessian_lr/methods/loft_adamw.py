"""LoFT's optimizer: AdamW of the whole weight, followed as closely as factors of rank r can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..curvature.loss_operator import LossOperator
from ..curvature.vectors import flatten, unflatten
from ..errors import RequestError

# Singular values of a factor below a thousandth of its largest are left out of the inverse (squared
# here): a step along them would be that much larger in the other factor, for rounding to be seen.
_NULL = 1e-6


class LoftAdamW(torch.optim.Optimizer):
    """LoFT-AdamW for W + s·B·A (arXiv 2505.21289), without weight decay.

    B and A take turns, B first; what follows is for B, and for A the same with everything transposed.
    With G = ∂L/∂W_eff, P = Aᵀ·(A·Aᵀ)⁻¹·A the projection onto A's rows, and t the number of steps:

    1. rescaled gradient: x = (∂L/∂B)·(A·Aᵀ)⁻¹ / s, so that x·A = G·P, whatever A's and s's size is;
    2. calibrated moments: m ← β₁·m·C + (1 − β₁)·x and, for row i with Q_i (r × r) in place of v's row,
       Q_i ← β₂·Cᵀ·Q_i·C + (1 − β₂)·x_iᵀ·x_i, where C = A_old·Aᵀ·(A·Aᵀ)⁻¹ expresses in today's A what
       was gathered in the A of the step before; v_ij = A_:jᵀ·Q_i·A_:j is then Adam's second moment of
       the projected gradients;
    3. projected step: B ← B − η/s·N·Aᵀ·(A·Aᵀ)⁻¹ with N = (m·A / (1 − β₁^t)) / (√(v / (1 − β₂^t)) + ε),
       so that the weight moves by −η·N·P.

    Both factors' moments are updated at every step. Where both factors have full rank, P is the identity
    and W_eff follows AdamW. Gradients are clipped by the norm of G·P over all adapters whose turn it is.

    Choices that the formulas leave open: (A·Aᵀ)⁻¹ is a pseudo-inverse, so B = 0 leaves A where it is;
    v is no smaller than its own rounding. ε is the caller's: 1e-8 follows AdamW, while the authors'
    implementation has 1e-4, and damps both inverses by 1e-6 and 1e-8.

    Args:
        adapters: (A (r × d_in), B (d_out × r), s) of every adapter, of one rank r.
        lr: η, the learning rate of the weights W + s·B·A.
        betas: β₁ and β₂.
        eps: ε.
        max_norm: Clip to this norm; None: do not.

    Raises:
        RequestError: the factors are sharded.
    """

    def __init__(
        self,
        adapters: Sequence[tuple[nn.Parameter, nn.Parameter, float]],
        lr: float,
        *,
        betas: tuple[float, float],
        eps: float,
        max_norm: float | None = None,
    ) -> None:
        if any(isinstance(factor, DTensor) for a, b, _ in adapters for factor in (a, b)):
            raise RequestError(
                "LoFT multiplies whole factors, and these are sharded over processes (FSDP2): measure before "
                "fully_shard(), or train another method"
            )
        groups = [{"params": [a, b], "scaling": scaling} for a, b, scaling in adapters]
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self._max_norm = max_norm
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all moments, and B at odd steps, A at even ones."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._steps += 1
        sides = self._sides()
        turn = [side for side in sides if side.is_b == bool(self._steps % 2)]
        share = self._clipped(turn)
        for side in sides:
            side.gather(share)
        for side in turn:
            damping = side.damping(side.state["second"], self._steps)
            move = side.step(side.state["first"], damping, self._steps)
            side.rows.sub_(move, alpha=side.group["lr"])
        return loss

    def geometry(self, parameters: Sequence[Tensor]) -> LoftGeometry:
        """What the next step of either factor would apply to the moments, at the present weights."""
        with torch.no_grad():
            return LoftGeometry(self._sides(), self._steps, parameters)

    def _sides(self) -> list[_Side]:
        both = [
            (group, factors, is_b)
            for group in self.param_groups
            for factors, is_b in ((group["params"][::-1], True), (group["params"], False))
        ]
        bases = [(a if is_b else a.T).detach().double() for _, (_, a), is_b in both]
        # One decomposition of many small matrices is much faster than many.
        inverses = torch.linalg.pinv(
            torch.stack([basis @ basis.T for basis in bases]), rtol=_NULL, hermitian=True
        )
        return [
            _Side(group, own, other, self.state[own], is_b, inverse.to(own.dtype))
            for (group, (own, other), is_b), inverse in zip(both, inverses, strict=True)
        ]

    def _clipped(self, turn: Sequence[_Side]) -> float | Tensor:
        """The factor that brings ‖G·P‖ over ``turn`` down to ``max_norm``."""
        if self._max_norm is None:
            return 1.0
        # ‖x·A‖² = ⟨x·A·Aᵀ, x⟩, and x·A·Aᵀ is the factor's own gradient over s.
        squares = torch.stack([(side.rescaled() * side.gradient).sum() / side.scaling for side in turn])
        return (self._max_norm / (squares.sum().clamp(min=0).sqrt() + 1e-6)).clamp(max=1.0)


@dataclass(frozen=True)
class _Side:
    """One factor as d rows of r coordinates in the r × k basis that the other one is."""

    group: dict[str, Any]
    own: nn.Parameter
    other: nn.Parameter
    state: dict[str, Tensor]
    is_b: bool
    inverse: Tensor  # (r, r), of basis·basisᵀ

    def oriented(self, tensor: Tensor) -> Tensor:
        """A view of something in this factor's shape as rows, or the reverse."""
        return tensor if self.is_b else tensor.T

    @property
    def rows(self) -> Tensor:
        """(d, r), a view of the parameter."""
        return self.oriented(self.own.detach())

    @property
    def basis(self) -> Tensor:
        """(r, k), a view of the other parameter."""
        return self.oriented(self.other.detach())

    @property
    def gradient(self) -> Tensor:
        """(d, r)."""
        assert self.own.grad is not None
        return self.oriented(self.own.grad)

    @property
    def scaling(self) -> float:
        return float(self.group["scaling"])

    def rescaled(self) -> Tensor:
        """x, (d, r)."""
        return self.gradient @ self.inverse / self.scaling

    def gather(self, share: float | Tensor) -> None:
        """Bring the moments to the present basis and add the gradient, times ``share``, to them."""
        beta1, beta2 = self.group["betas"]
        x = self.rescaled() * share
        first, second = self.moments()
        self.state["first"] = first.mul_(beta1).add_(x, alpha=1 - beta1)
        self.state["second"] = second.mul_(beta2).add_(x[:, :, None] * x[:, None, :], alpha=1 - beta2)
        self.state["basis"] = self.basis.clone()

    def moments(self) -> tuple[Tensor, Tensor]:
        """m (d, r) and Q (d, r, r) in the present basis."""
        if not self.state:
            return torch.zeros_like(self.rows), self.rows.new_zeros(*self.rows.shape, self.rows.shape[1])
        change = self.state["basis"] @ self.basis.T @ self.inverse
        return self.state["first"] @ change, change.T @ self.state["second"] @ change

    def step(self, first: Tensor, damping: Tensor, steps: int) -> Tensor:
        """The move of the rows over −η, (d, r), from moments in the present basis."""
        beta1, _ = self.group["betas"]
        whole = first @ self.basis / damping
        return whole @ self.basis.T @ self.inverse / (self.scaling * (1 - beta1**steps))

    def damping(self, second: Tensor, steps: int) -> Tensor:
        """√(v / (1 − β₂^t)) + ε, (d, k)."""
        _, beta2 = self.group["betas"]
        v = sum((second[:, i] @ self.basis) * row for i, row in enumerate(self.basis))
        assert isinstance(v, Tensor)
        # v_ij ≤ tr(Q_i)·‖basis_:j‖², and its sum cannot be told from zero below that times the rounding unit.
        trace = second.diagonal(dim1=1, dim2=2).sum(1)
        least = torch.finfo(v.dtype).eps * torch.outer(trace, self.basis.square().sum(0))
        return (torch.maximum(v, least) / (1 - beta2**steps)).sqrt_() + self.group["eps"]


class LoftGeometry:
    """LoFT's step as −η·K·m′ with a block-diagonal K: P⁻¹ in Adam's place.

    m′ is the running mean of the factor's plain gradient, in the present basis: m = m′·(A·Aᵀ)⁻¹ / s. So
    row i of B moves by −η·K_i·m′_i with K_i = (A·Aᵀ)⁻¹·(A·D_i·Aᵀ)·(A·Aᵀ)⁻¹ / (s²·(1 − β₁^t)), an r × r
    matrix, and D_i = 1 / (√(v_i: / (1 − β₂^t)) + ε) on the diagonal; likewise column by column for A.

    λ_P = λ_max(K^½·H·K^½) is that of both factors together, while steps move one at a time. On a
    quadratic where they do not interact, each steps on a momentum that has decayed twice, which is
    unstable from (2 + 2β₁²) / ((1 − β₁²)·λ_P) = 19/λ_P on; where they move the same thing equally, each
    step does half of what λ_P says, which is stable up to 76/λ_P. 38/λ_P is the middle.

    Attributes:
        direction: u, shape (n,): the step that both factors would take, over −η.
    """

    stability_slack = 2.0

    def __init__(self, sides: Sequence[_Side], steps: int, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._sides: dict[Tensor, _Side] = {side.own: side for side in sides}
        self._roots: dict[Tensor, Tensor] = {}
        self._small: dict[Tensor, Tensor] = {}
        moves = []
        for parameter in parameters:
            side = self._sides[parameter]
            first, second = side.moments()
            damping = side.damping(second, steps)
            moves.append(side.oriented(side.step(first, damping, steps)))
            self._roots[parameter] = _root(side, damping, steps)
            self._small[parameter] = damping.amax(1) <= 10 * side.group["eps"]
        self.direction = flatten(moves)

    def precondition(self, hessian: LossOperator) -> LoftOperator:
        """K^½ · H · K^½."""
        return LoftOperator(hessian, self)

    def root(self, vector: Tensor) -> Tensor:
        """K^½·v, shape (n,)."""
        turned = [
            self._sides[parameter].oriented(
                torch.einsum("iab,ib->ia", self._roots[parameter], self._sides[parameter].oriented(piece))
            )
            for parameter, piece in zip(self._parameters, unflatten(vector, self._parameters), strict=True)
        ]
        return flatten(turned)

    def decided_by_epsilon(self, vector: Tensor) -> float:
        """The share of a vector's square in rows whose moments nowhere exceed some ε."""
        pieces = zip(self._parameters, unflatten(vector, self._parameters), strict=True)
        rows = (self._sides[p].oriented(piece)[self._small[p]] for p, piece in pieces)
        return float(sum((part.double() ** 2).sum() for part in rows))


class LoftOperator:
    """K^½ · H · K^½, symmetric, (n, n)."""

    def __init__(self, hessian: LossOperator, geometry: LoftGeometry) -> None:
        self._hessian, self._geometry = hessian, geometry

    def matvec(self, vector: Tensor) -> Tensor:
        """K^½·H·K^½·v, shape (n,)."""
        return self._geometry.root(self._hessian.matvec(self._geometry.root(vector)))


def _root(side: _Side, damping: Tensor, steps: int) -> Tensor:
    """K_i^½ of every row, (d, r, r), the symmetric root."""
    beta1, _ = side.group["betas"]
    middle = torch.stack([(row / damping) @ side.basis.T for row in side.basis], dim=1)
    k = side.inverse @ middle @ side.inverse / (side.scaling**2 * (1 - beta1**steps))
    values, vectors = torch.linalg.eigh((k + k.mT) / 2)
    return vectors * values.clamp(min=0).sqrt()[:, None, :] @ vectors.mT
