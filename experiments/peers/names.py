"""The tools' names, in the order in which they run and are listed.

Apart from `tools.py`, which tells what each does: whoever imports that loads torch, and a child's peak
memory would start from its parent's.
"""

from __future__ import annotations

# The tools that take single modules.
PER_MODULE = ("ours-modules", "naive-modules")
# With what a figure calls them.
LABELS = {
    "truth": "hessian-lr, float32, to 0.1%",
    "ours-bfloat16": "hessian-lr, bfloat16",
    "ours-float32": "hessian-lr, float32",
    "naive": "naive recipe",
    "eigenthings": "hessian-eigenthings",
    "eigenthings-weighted": "hessian-eigenthings, weighted loss",
    "eigenthings-differences": "hessian-eigenthings, differences",
    "pyhessian-batch": "PyHessian, one batch",
    "pyhessian-loader": "PyHessian, loader",
    "curvlinops": "curvlinops",
    "curvlinops-eager": "curvlinops, eager attention",
    "curvlinops-rewritten": "curvlinops, rewritten model",
    "ours-modules": "hessian-lr, modules together",
    "naive-modules": "naive recipe, module by module",
}
TOOLS = tuple(LABELS)
