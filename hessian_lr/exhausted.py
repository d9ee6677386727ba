"""How torch says that the processor's memory is exhausted, turned into Python's own error for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_errors() -> Iterator[None]:
    """Within it, a failed allocation on the CPU is a MemoryError.

    torch has ``OutOfMemoryError`` for accelerators only; its allocator for the CPU raises a plain
    RuntimeError, which is told by its text.

    Raises:
        MemoryError: in the place of torch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error) or "Cannot allocate memory" in str(error):
            raise MemoryError("out of memory on the CPU") from error
        raise
