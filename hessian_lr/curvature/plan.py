"""Keep a gradient's graph, or rebuild it: decided by what one was measured to take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch

from ..errors import OutOfMemory
from ..exhausted import memory_errors

# Of the memory that is free when an operator is made, the share that kept graphs may fill. The
# rest is for the Lanczos basis and for what a product needs while it runs.
MEMORY_SHARE = 0.6


class Plan:
    """Which microbatches keep their graph.

    The first graph is measured; the others are taken to need as much a token. A graph is kept while
    the largest one could still be built on top of all that are kept.

    Args:
        devices: Where the graphs live: the parts of one that lies on several count by themselves.
        tokens: Of each microbatch that this process works on, by its index.
        budget: Bytes that graphs may fill, on all devices together; 0 rebuilds all, None takes a share of
            what is free now on each.
    """

    def __init__(
        self, devices: Iterable[torch.device], tokens: Mapping[int, int], budget: int | None
    ) -> None:
        self._devices, self._tokens = tuple(dict.fromkeys(devices)), tokens
        self._most = max(tokens.values(), default=0)
        self._limits = (
            [free_memory(device) * MEMORY_SHARE for device in self._devices]
            if budget is None
            else [float(budget)]
        )
        self._per_token = [0.0] * len(self._limits)
        self._kept: set[int] = set()
        self._at_start = self._used()

    @property
    def budget(self) -> float:
        """Bytes that graphs may fill, on all devices together."""
        return sum(self._limits)

    @property
    def bytes_per_token(self) -> float:
        """What a graph was measured to take, on all devices together."""
        return sum(self._per_token)

    @property
    def largest(self) -> float:
        """Bytes that the largest graph takes by what was measured, on all devices together; 0 before."""
        return self.bytes_per_token * self._most

    @property
    def rebuilds_all(self) -> bool:
        """Whether no graph will ever be kept."""
        return self.budget == 0

    @contextmanager
    def measure(self, index: int) -> Iterator[None]:
        """Learn what a graph takes by watching this one being built."""
        before = self._used()
        yield
        taken = [(now - then) / self._tokens[index] for now, then in zip(self._used(), before, strict=True)]
        self._per_token = [max(pair) for pair in zip(self._per_token, taken, strict=True)]

    def keeps(self, index: int) -> bool:
        """Whether the graph just built should be kept."""
        if self.rebuilds_all:
            return False
        in_use = [now - then for now, then in zip(self._used(), self._at_start, strict=True)]
        each = zip(in_use, self._per_token, self._limits, strict=True)
        if any(used + per_token * self._most > limit for used, per_token, limit in each):
            return False
        self._kept.add(index)
        return True

    @contextmanager
    def explained(self, dtype: torch.dtype) -> Iterator[None]:
        """Within it, running out of memory is an error that says what there is and what would help.

        Raises:
            OutOfMemory: in the place of torch's and Python's own.
        """
        try:
            with memory_errors():
                yield
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise OutOfMemory(self._exhausted(dtype)) from error

    def _exhausted(self, dtype: torch.dtype) -> str:
        most = self._most
        free = (f"{device} ({free_memory(device) / 1e9:.1f} GB free)" for device in self._devices)
        said = f"out of memory on {', '.join(free)} at {most:,} tokens"
        if self.bytes_per_token:
            need = self.bytes_per_token * most
            said += f", whose graph takes {need / 1e9:.2f} GB, {self.bytes_per_token / 1e6:.2f} MB a token"
        options = ["shorter rows (--max-length; memory goes with their tokens)"]
        if dtype is torch.float32:
            options.append("--dtype bfloat16 (about half)")
        if self._devices[0].type == "cuda":
            options.append(f"--device cpu ({free_memory(torch.device('cpu')) / 1e9:.1f} GB free there)")
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

    def _used(self) -> list[int]:
        """Memory in use, of each limit's devices."""
        used = [_used_memory(device) for device in self._devices]
        return used if len(self._limits) == len(used) else [sum(used)]


def free_memory(device: torch.device) -> int:
    """Bytes that are free now."""
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
