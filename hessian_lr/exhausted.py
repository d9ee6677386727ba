"""How torch says that the processor's memory is exhausted, turned into Python's own error for it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_SAID = ("DefaultCPUAllocator", "Cannot allocate memory")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Within it, a failed allocation on the CPU is a MemoryError.

    Raises:
        MemoryError: in the place of torch's RuntimeError, or the system's OSError.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not ran_out(error):
            raise
        raise MemoryError("out of memory on the CPU") from error


def ran_out(error: Exception) -> bool:
    """Whether the processor's memory was exhausted.

    torch has ``OutOfMemoryError`` for accelerators only; its allocator for the CPU, and its mapping of
    files, raise a plain RuntimeError, which is told by its text.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return any(said in str(error) for said in _SAID)
    return isinstance(error, MemoryError)
