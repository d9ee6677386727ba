"""Files that are written whole or not at all, whatever stops the process or the disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import HessianLRError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What a file system answers that knows no locks, or no flushing of folders.
_UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EACCES, errno.EBADF}


def write_bytes(path: str | Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically: a temporary file beside it, flushed to disk, then renamed.

    At every moment ``path`` holds all of one writer's content, or what was there before. Any number of
    processes may write the same file: each has its own temporary one, and the last to finish stays. A
    link is followed; a device or a pipe, which cannot be replaced, is written as it is.

    A killed process leaves its temporary file, ``.<name>.<random>.tmp``. Nobody reads it, and the next to
    write the same file removes it: a living writer holds a lock on its own.

    Raises:
        HessianLRError: the folder cannot be written, or the disk is full; what was there before still is.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    try:
        if os.path.lexists(target) and not target.is_file() and not target.is_dir():
            target.write_bytes(b"".join(parts))
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        _replace(target, parts)
    except OSError as error:
        raise HessianLRError(_told(path, target, sum(map(len, parts)), error)) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it no other process that asks so has the file: to read it, and to write what follows from that.

    The lock is on ``.<name>.lock`` beside it, which stays. Where there can be none, it is done without.
    """
    target = Path(os.path.realpath(path))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = target.with_name(f".{target.name[:200]}.lock")
            handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, handle)
            _lock(handle, wait=True)
        yield


def _replace(target: Path, parts: Iterable[bytes | memoryview]) -> None:
    temporary, handle = _begin(target)
    try:
        with open(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(handle)
            # Its lock is held until it has the name under which nobody removes it.
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def _begin(target: Path) -> tuple[Path, int]:
    """A new file beside the target, locked."""
    while True:
        # Not the whole of a long name, to which nothing could be added.
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.tmp")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        if not _lock(handle, wait=True) or os.fstat(handle).st_nlink:
            return temporary, handle
        # Between its creation and its lock another writer took it for a leftover.
        os.close(handle)


def _remove_leftovers(target: Path) -> None:
    prefix = f".{target.name[:200]}."
    try:
        with os.scandir(target.parent) as entries:
            leftovers = [e.path for e in entries if e.name.startswith(prefix) and e.name.endswith(".tmp")]
    except PermissionError:
        return  # a folder that may be written but not listed
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _lock(handle, wait=False):
                    os.unlink(leftover)
            finally:
                os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock a file for as long as it is open; False where another process has, or the file system cannot."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _UNABLE or isinstance(error, BlockingIOError):
            return False
        raise
    return True


def _flush_folder(folder: Path) -> None:
    """Make the new name outlast a loss of power."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
    finally:
        os.close(handle)


def _told(path: Path, target: Path, size: int, error: OSError) -> str:
    said = f"cannot write {path}: {error.strerror or error}"
    if error.errno not in _FULL:
        return said
    folder = target.parent
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    where = (
        "the limit of this process or file system is less"
        if error.errno == errno.EFBIG
        else f"{free:,} are free in {folder}"
    )
    kept = ": what it held before is still there" if target.is_file() else ""
    return f"{said}; it takes {size:,} bytes, and {where}. Make room and give the same command again{kept}"
