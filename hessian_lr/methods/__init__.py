"""LoRA methods: one registry, each method a way to parametrize and initialize an adapter."""

from .method import Method, Target
from .registry import METHODS, adapted, build, check, copied, initial_batches, method_of
from .targets import ALL_LINEAR, find_targets

__all__ = [
    "ALL_LINEAR",
    "METHODS",
    "Method",
    "Target",
    "adapted",
    "build",
    "check",
    "copied",
    "find_targets",
    "initial_batches",
    "method_of",
]
