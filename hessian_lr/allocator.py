"""Keep freed memory in the process, where the C library can be asked to."""

from __future__ import annotations

import ctypes
import sys

# malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Have the allocator reuse large blocks instead of giving each back to the system at once.

    Every training step and every product frees and asks for the same gigabytes again; taking them from
    the system afresh costs a page fault for each 4 KiB. For a whole process only: the command line
    calls it, the library never does. Elsewhere than on Linux with the GNU C library nothing happens.

    Returns:
        Whether the allocator took the settings.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_TOP_PAD, 1 << 26))
