"""λ of an adapter with its error: of all parameters together, of a growing sample, by module, along a run, in
Adam's geometry after a warm-up; the eigenvalues next to it, and how all are distributed.
"""

from .cost import peak_rss_bytes
from .curvature import Curvature
from .distribution import density
from .grow import grown_sharpness
from .how import ALGORITHMS
from .joint import OPERATORS, sharpness
from .module_block import ModuleSharpness
from .per_module import ModuleSpectrum, module_sharpness
from .preconditioned import AdamSharpness, adam_sharpness
from .state import unchanged
from .top import TopEigenvalues, top_eigenvalues
from .track import SharpnessTracker, TrackedSharpness

__all__ = [
    "ALGORITHMS",
    "OPERATORS",
    "AdamSharpness",
    "Curvature",
    "ModuleSharpness",
    "ModuleSpectrum",
    "SharpnessTracker",
    "TopEigenvalues",
    "TrackedSharpness",
    "adam_sharpness",
    "density",
    "grown_sharpness",
    "module_sharpness",
    "peak_rss_bytes",
    "sharpness",
    "top_eigenvalues",
    "unchanged",
]
