"""The whole spectrum at once: its density by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from ..errors import RequestError
from ..records import Result
from ..setting import check_counts
from .basis import Basis
from .block_lanczos import Matmat
from .lanczos import BREAKDOWN, Matvec, Progress, random_vectors, start_vector, take_step
from .tridiagonal import Tridiagonal

# The smoothing width is at least the spectrum's range over this number, so that a grid of twice as
# many points resolves it.
_FINEST = 400

# Grid points a smoothing width, and widths by which the grid goes beyond the outermost node.
_POINTS_PER_WIDTH = 2
_MARGIN = 6.0

Array = NDArray[np.float64]
Elementwise = Callable[[Array], Array]


@dataclass(frozen=True)
class SpectralDensity(Result):
    """An estimate of how a symmetric matrix's n eigenvalues are distributed.

    Every ``*_error`` is a standard error over the probes. It does not cover what m Lanczos steps
    cannot resolve, which is about ``width``. Where a few eigenvalues dominate a sum, the probes
    scatter like χ² and few of them state too small an error: of trace and exponential of such a
    spectrum 8 probes covered the truth within two errors in 79 to 89 of 100 cases, not 91.

    Attributes:
        size: n.
        nodes: For each probe its Ritz values θ_k, at most m of them.
        weights: For each probe the squared first components of T's eigenvectors; they sum to 1.
        trace: Estimate of the sum of all eigenvalues.
        width: Standard deviation of the Gaussian in place of each node: the typical distance of
            neighbouring nodes (the median over the spectral mass), but at least 1/400 of the range; that
            where fewer than m steps exhaust the space, as with few distinct eigenvalues, all then known.
        grid: Points x, equally spaced at half the width.
        density: Share of the eigenvalues per unit at x; integrates to 1.
        cumulative: Expected number of eigenvalues ≤ x, from 0 to n, smoothed likewise.
        products: Products with the matrix.
    """

    size: int
    nodes: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    trace: float
    trace_error: float
    width: float
    grid: tuple[float, ...]
    density: tuple[float, ...]
    density_error: tuple[float, ...]
    cumulative: tuple[float, ...]
    cumulative_error: tuple[float, ...]
    products: int

    def __post_init__(self) -> None:
        curves = (self.density, self.density_error, self.cumulative, self.cumulative_error)
        points = len(self.grid)
        if points < 2 or any(len(curve) != points for curve in curves):
            raise RequestError(
                "a spectral density needs a grid of two points or more, and as many values in each of its "
                f"curves; here are {points} points and {', '.join(str(len(one)) for one in curves)} values"
            )
        if not self.width or self.width <= 0:
            raise RequestError(f"a spectral density's width must be a positive number, not {self.width}")

    def trace_of(self, function: Elementwise) -> tuple[float, float]:
        """tr f(H) = Σ f(λ_i) with its standard error, for an f that maps an array elementwise.

        Unbiased for polynomials of a degree below 2m, which m-point Gauss quadrature integrates
        exactly.
        """
        return _trace_of(function, self.size, self.nodes, self.weights)


@dataclass
class _Probe:
    """A random vector, and how far Lanczos has come from it.

    Attributes:
        vector: Whose product is next, shape (n,).
    """

    basis: Basis
    vector: Tensor
    t: Tridiagonal = field(default_factory=Tridiagonal)


def spectral_density(
    matvec: Matvec,
    size: int,
    *,
    matmat: Matmat | None = None,
    probes: int = 8,
    steps: int = 40,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> SpectralDensity:
    """The spectral density of a symmetric n × n matrix, in probes · steps products.

    For a uniformly random unit vector q, n·q·f(H)·q has the expectation tr f(H), and m Lanczos
    steps from q give the m-point Gauss quadrature of it: nodes are T's eigenvalues, weights the
    squares of the first components of its eigenvectors (Ubaru, Chen and Saad, SIAM J. Matrix Anal.
    Appl. 38, 2017). With a Gaussian around each x for f this is the smoothed density of Ghorbani,
    Krishnan and Xiao (2019, arXiv 1901.10159).

    Args:
        matvec: v ↦ H·v for v of shape (n,).
        size: n.
        matmat: V ↦ H·V for V of shape (n, k). With it all probes go in lock-step, each step one product with
            a block, where that costs less than its columns. The numbers are those of one after another, up
            to how H·V is rounded; in memory are the bases of all probes.
        probes: Random vectors; the standard errors fall with their square root.
        steps: m, Lanczos steps from each; the resolution. A basis holds m vectors.
        seed: Seed of the probes; the caller's generator is not touched.
        device: Where the basis lives.
        dtype: Type of the basis, float32 or float64.
        progress: Called after each step with (products, all products, largest Ritz value, its residual).

    Raises:
        RequestError: fewer than two probes (no error could be stated), no step, or no whole number of them.
    """
    check_probes(probes, steps)
    generator = torch.Generator().manual_seed(seed)
    room = min(steps, size)
    bases = [Basis(size, device, dtype, room) for _ in range(1 if matmat is None else probes)]
    nodes: list[Array] = []
    weights: list[Array] = []
    ended: list[bool] = []
    products = saved = 0
    for _ in range(0, probes, len(bases)):
        group = []
        for basis in bases:
            basis.shorten(0)
            random = random_vectors(1, size, generator)[0]
            group.append(_Probe(basis, start_vector(size, seed, random, device, dtype)))
        active = group
        while active:
            for one, image in zip(active, _images(active, matvec, matmat), strict=True):
                take_step(one.basis, one.t, one.vector, image)
                products += 1
                if one.t.following is None:
                    saved += steps - len(one.basis)
                if progress is not None:
                    values, vectors = one.t.eigh()
                    residual = float(one.t.residuals(vectors)[-1])
                    progress(products + saved, probes * steps, float(values[-1]), residual)
            active = [one for one in active if one.t.following is not None and len(one.basis) < steps]
            for one in active:
                assert one.t.following is not None
                one.vector = one.t.following
        for one in group:
            values, vectors = one.t.eigh()
            nodes.append(values)
            weights.append(vectors[0] ** 2)
            ended.append(one.t.following is None)

    trace, trace_error = _trace_of(lambda x: x, size, nodes, weights)
    width = _smoothing_width(nodes, weights, ended, BREAKDOWN * torch.finfo(dtype).eps)
    low, high = (float(end(np.concatenate(nodes))) for end in (np.min, np.max))
    count = math.ceil((high - low + 2 * _MARGIN * width) / width * _POINTS_PER_WIDTH) + 1
    grid = low - _MARGIN * width + width / _POINTS_PER_WIDTH * np.arange(count)
    z = [(grid[:, None] - x) / width for x in nodes]
    density, density_error = _mean([norm.pdf(d) @ w / width for d, w in zip(z, weights, strict=True)])
    cumulative, cumulative_error = _mean([size * norm.cdf(d) @ w for d, w in zip(z, weights, strict=True)])
    return SpectralDensity(
        size=size,
        nodes=tuple(tuple(x.tolist()) for x in nodes),
        weights=tuple(tuple(w.tolist()) for w in weights),
        trace=trace,
        trace_error=trace_error,
        width=width,
        grid=tuple(grid.tolist()),
        density=tuple(density.tolist()),
        density_error=tuple(density_error.tolist()),
        cumulative=tuple(cumulative.tolist()),
        cumulative_error=tuple(cumulative_error.tolist()),
        products=products,
    )


def check_probes(probes: int, steps: int) -> None:
    """Refuse numbers of probes and steps that tell nothing.

    Raises:
        RequestError: as ``spectral_density``.
    """
    check_counts(probes=probes, lanczos_steps=steps)
    if probes < 2:
        raise RequestError(f"probes must be at least 2 for a standard error, not {probes!r}")


def _images(probes: Sequence[_Probe], matvec: Matvec, matmat: Matmat | None) -> Sequence[Tensor]:
    """H times the vector of each probe, of which there is one where there is no ``matmat``."""
    if matmat is None:
        return [matvec(one.vector) for one in probes]
    return matmat(torch.stack([one.vector for one in probes], dim=1)).unbind(1)


def _trace_of(
    function: Elementwise,
    size: int,
    nodes: Sequence[Sequence[float] | Array],
    weights: Sequence[Sequence[float] | Array],
) -> tuple[float, float]:
    forms = [size * function(np.asarray(x)) @ np.asarray(w) for x, w in zip(nodes, weights, strict=True)]
    mean, error = _mean(forms)
    return float(mean), float(error)


def _mean(values: Sequence[Array]) -> tuple[Array, Array]:
    """The mean over probes and its standard error."""
    stacked = np.stack(values)
    return stacked.mean(axis=0), stacked.std(axis=0, ddof=1) / math.sqrt(len(values))


def _smoothing_width(
    nodes: Sequence[Array], weights: Sequence[Array], ended: Sequence[bool], rounding: float
) -> float:
    """``SpectralDensity.width``, where nodes that differ by ``rounding``, relatively, are one."""
    # The nodes of a probe whose space ended are eigenvalues: nothing lies between them.
    spacings = np.concatenate(
        [
            np.zeros(len(x)) if end or len(x) == 1 else np.gradient(x)
            for x, end in zip(nodes, ended, strict=True)
        ]
    )
    mass = np.concatenate(list(weights))
    order = np.argsort(spacings)
    middle = np.searchsorted(np.cumsum(mass[order]), 0.5 * mass.sum())
    spacing = float(spacings[order[middle]])
    every = np.concatenate(list(nodes))
    spread, largest = float(every.max() - every.min()), float(np.abs(every).max())
    known = rounding * largest
    if spread <= known:
        # A multiple of the identity has no range: a width that is small beside its value will do.
        return max(spacing, (1e-3 * largest or 1.0) / _FINEST)
    return max(spacing, spread / _FINEST, known)
