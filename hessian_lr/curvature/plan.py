"""Keep a gradient's graph, or rebuild it: decided by what one was measured to take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch

from ..errors import HessianLRError
from ..exhausted import memory_errors

# Of the memory that is free when an operator is made, the share that kept graphs may fill. The
# rest is for the Lanczos basis and for what a product needs while it runs.
MEMORY_SHARE = 0.6


class Plan:
    """Which microbatches keep their graph.

    The first graph is measured; the others are taken to need as much a token. A graph is kept while
    the largest one could still be built on top of all that are kept.

    Args:
        device: Where the graphs live.
        tokens: Of each microbatch that this process works on, by its index.
        budget: Bytes that graphs may fill; 0 rebuilds all, None takes a share of what is free now.
    """

    def __init__(self, device: torch.device, tokens: Mapping[int, int], budget: int | None) -> None:
        self._device, self._tokens = device, tokens
        self._most = max(tokens.values(), default=0)
        self.budget = _free_memory(device) * MEMORY_SHARE if budget is None else float(budget)
        self.bytes_per_token = 0.0
        self._kept: set[int] = set()
        self._at_start = _used_memory(device)

    @property
    def rebuilds_all(self) -> bool:
        """Whether no graph will ever be kept."""
        return self.budget == 0

    @contextmanager
    def measure(self, index: int) -> Iterator[None]:
        """Learn what a graph takes by watching this one being built."""
        before = _used_memory(self._device)
        yield
        taken = (_used_memory(self._device) - before) / self._tokens[index]
        self.bytes_per_token = max(self.bytes_per_token, taken)

    def keeps(self, index: int) -> bool:
        """Whether the graph just built should be kept."""
        if self.rebuilds_all:
            return False
        in_use = _used_memory(self._device) - self._at_start
        if in_use + self.bytes_per_token * self._most > self.budget:
            return False
        self._kept.add(index)
        return True

    @contextmanager
    def explained(self, dtype: torch.dtype) -> Iterator[None]:
        """Within it, running out of memory is an error that says what there is and what would help.

        Raises:
            HessianLRError: in the place of torch's and Python's own.
        """
        try:
            with memory_errors():
                yield
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise HessianLRError(self._exhausted(dtype)) from error

    def _exhausted(self, dtype: torch.dtype) -> str:
        most = self._most
        free = _free_memory(self._device) / 1e9
        said = f"out of memory on {self._device} ({free:.1f} GB free) at {most:,} tokens"
        if self.bytes_per_token:
            need = self.bytes_per_token * most
            said += f", whose graph takes {need / 1e9:.2f} GB, {self.bytes_per_token / 1e6:.2f} MB a token"
        options = ["shorter rows (--max-length; memory goes with their tokens)"]
        if dtype is torch.float32:
            options.append("--dtype bfloat16 (about half)")
        if self._device.type == "cuda":
            options.append(f"--device cpu ({_free_memory(torch.device('cpu')) / 1e9:.1f} GB free there)")
        options.append("ending what else holds memory")
        return f"{said}. What helps: {'; '.join(options)}"

    def note(self) -> str | None:
        """Why some microbatches rebuild their graph for each product, or None if none does."""
        rebuilt = len(self._tokens) - len(self._kept)
        if not rebuilt:
            return None
        if self.rebuilds_all:
            why = "as asked"
        else:
            need = self.bytes_per_token * sum(self._tokens.values())
            why = (
                f"memory: all would take {need / 1e9:.1f} GB, {self.bytes_per_token / 1e6:.1f} MB a token, "
                f"and {self.budget / 1e9:.1f} GB were allowed"
            )
        return f"graphs of {rebuilt} of {len(self._tokens)} microbatches rebuilt for each product ({why})"


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _used_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    # The machine's, not the process's: what other processes take is gone as well, and memory that
    # the allocator has freed but not given back counts as taken only once.
    memory = psutil.virtual_memory()
    return int(memory.total - memory.available)
