"""Matrices whose spectra are known."""

import numpy as np
import torch


def with_spectrum(eigenvalues, seed=0):
    """A dense symmetric matrix with the given eigenvalues and a random basis."""
    n = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return torch.from_numpy(basis @ np.diag(np.asarray(eigenvalues, dtype=float)) @ basis.T)
