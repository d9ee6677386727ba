"""Causal language models: from the hub, a folder, a GGUF file or under a built-in name."""

from .identity import fingerprint
from .loading import ALIASES, LoadedModel, load

__all__ = ["ALIASES", "LoadedModel", "fingerprint", "load"]
