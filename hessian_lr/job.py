"""A command that torchrun started on several ranks: they meet, one speaks, all end together."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import psutil

from .errors import HessianLRError, RequestError

if TYPE_CHECKING:
    from torch.distributed import Store

# Commands that can share their work; the others would do all of it once a rank.
COMMANDS = ("predict", "spectrum", "list")
# Seconds that a rank is waited for in a sum, when it neither comes nor is known to be gone.
TIMEOUT = "HESSIAN_LR_TIMEOUT"
_TIMEOUT_SECONDS = 600.0
# Seconds in which a lost process shows as such, and in which another rank may tell what this one would.
_SHOWS, _SPEAKS = 2.0, 1.0


def launched() -> bool:
    """Whether this is one of several processes that torchrun (or what sets its variables) started."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def rank() -> int:
    """This process's rank; 0 if it is alone."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """Its rank among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) if launched() else 0


class Job:
    """One rank's part in a command. A ``distributed.Board``."""

    def __init__(self) -> None:
        self.rank, self.size = rank(), int(os.environ["WORLD_SIZE"])
        self._store: Store | None = None
        self._sums = 0

    def run(self, command: Callable[[], tuple[int, str]]) -> tuple[int, str]:
        """Run a command that returns its exit status and what to say of a failure, which one rank says."""
        with self._silence():
            status, said = command()
        if status > 2 and (gone := self._gone()):
            # It was ended because another one had been.
            said = f"error: {self._named(gone)} gone (killed, out of memory or stopped); no result was made"
        elif status > 2:
            said = f"rank {self.rank}: {said}"
        if status == 1 and said.startswith("error: ") and not said.startswith("error: rank "):
            said = f"error: rank {self.rank}: {said.removeprefix('error: ')}"
        return status, said if said and self._is_to_speak() else ""

    @contextmanager
    def joined(self, command: str) -> Iterator[None]:
        """Within it, all ranks share the command's work.

        Raises:
            RequestError: the command works in one process only.
            HessianLRError: the ranks do not find each other.
        """
        if command not in COMMANDS:
            raise RequestError(
                f"`{command}` works in one process, and torchrun started {self.size}: run it without "
                f"torchrun (only {' and '.join(COMMANDS[:2])} share their work)"
            )
        import torch
        import torch.distributed as dist

        from .distributed import across_ranks

        timeout = timedelta(seconds=_seconds())
        cuda = torch.cuda.is_available()
        try:
            self._store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=timeout))
            self._store = dist.PrefixStore("hessian-lr", self._store)
            self._store.set(f"process/{self.rank}", f"{os.getpid()} {socket.gethostname()}")
            if cuda:
                torch.cuda.set_device(local_rank() % torch.cuda.device_count())
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=dist.PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=timeout,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise HessianLRError(
                f"the {self.size} ranks do not find each other: {str(error).splitlines()[0]}. RANK, "
                "WORLD_SIZE, MASTER_ADDR and MASTER_PORT are torchrun's; unset them to work in one process"
            ) from error
        with across_ranks(board=self):
            yield
        with suppress(RuntimeError):
            dist.destroy_process_group()

    @contextmanager
    def first_here(self) -> Iterator[None]:
        """What is fetched or made once a machine: its first rank does it, the others when that is done."""
        key = f"ready/{os.environ.get('GROUP_RANK', socket.gethostname())}"
        assert self._store is not None
        while local_rank() and not self._store.check([key]):
            # Not in a wait of torch's own, which would keep a signal from being seen.
            time.sleep(0.1)
        yield
        self._store.set(key, "")

    def arrive(self) -> None:
        """This rank has come to the next sum."""
        self._sums += 1
        assert self._store is not None
        with suppress(RuntimeError):
            self._store.set(f"sums/{self.rank}", str(self._sums))

    def missing(self) -> str:
        """Which ranks are gone, or else which have not come to the present sum, in words."""
        until = time.monotonic() + _SHOWS
        while not (missing := self._gone()) and time.monotonic() < until:
            time.sleep(0.05)
        if not missing:
            missing = [r for r in self._others() if int(self._read(f"sums/{r}") or 0) < self._sums]
        return self._named(missing)

    def _named(self, missing: list[int]) -> str:
        named = [f"rank {r} (process {' on '.join(self._process(r))})" for r in missing]
        if len(named) < 2:
            return f"{named[0] if named else 'another rank'} is"
        return f"{', '.join(named)} are"

    def _others(self) -> list[int]:
        return [r for r in range(self.size) if r != self.rank]

    def _read(self, key: str) -> str:
        """What a rank wrote; empty if it has not, or nobody is left to ask."""
        with suppress(RuntimeError):
            if self._store is not None and self._store.check([key]):
                return str(self._store.get(key).decode())
        return ""

    def _process(self, of: int) -> list[str]:
        return self._read(f"process/{of}").split() or ["unknown"]

    def _gone(self) -> list[int]:
        """The ranks of this machine whose processes are no more, or stopped."""
        gone = []
        for other in self._others():
            pid, *host = self._process(other)
            if host == [socket.gethostname()]:
                try:
                    state = psutil.Process(int(pid)).status()
                except psutil.NoSuchProcess:
                    state = psutil.STATUS_DEAD
                if state in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED):
                    gone.append(other)
        return gone

    @contextmanager
    def _silence(self) -> Iterator[None]:
        """Only rank 0 prints: results, notes, progress."""
        if self.rank == 0:
            yield
            return
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield

    def _is_to_speak(self) -> bool:
        """Whether this one tells what went wrong: rank 0 first, and nobody twice."""
        if self._store is None:
            return self.rank == 0
        with suppress(RuntimeError):
            until = time.monotonic() + _SPEAKS
            while self.rank and not self._store.check(["told"]) and time.monotonic() < until:
                time.sleep(0.05)
            return self._store.add("told", 1) == 1
        return True


def _seconds() -> float:
    given = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(given or _TIMEOUT_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RequestError(f"{TIMEOUT} takes the seconds that a rank is waited for, not {given!r}")
    return seconds
