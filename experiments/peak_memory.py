"""The peak memory of a part of a process, for studies that give every measurement its own process."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

from hessian_lr.measure import peak_rss_bytes


def forget_peak() -> None:
    """Give freed memory back to the system and start the peak anew.

    Elsewhere than on Linux with the GNU C library the peak goes on counting from the start.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except (OSError, AttributeError):
        print("this peak includes whatever the process did before", file=sys.stderr)


def peak_bytes() -> int:
    """Largest resident memory since ``forget_peak``."""
    return _status("VmHWM") or peak_rss_bytes()


def resident_bytes() -> int | None:
    """Resident memory now; None where the system does not tell."""
    return _status("VmRSS")


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
