"""One sample over several processes: each takes its share, and one sum a product makes it whole.

Every rank is given the same model and the same whole sample, cuts it alike, works on its own pieces and
learns the sums. Where the model itself lies in pieces (FSDP2), every rank runs the whole sample instead. All
else (Lanczos, optimizer steps, decisions) every rank does by itself from these sums, which are the same to
the last bit on all of them, so that the ranks stay in step without further talk.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from .errors import (
    HessianLRError,
    NonFiniteError,
    NotTwiceDifferentiable,
    OutOfMemory,
    RankError,
    RequestError,
)
from .precision import working_type

# Bits of a stamp: what a float32 holds exactly.
_STAMP = 1 << 24
# The kinds of failure that a rank may be told of, most particular first.
_KINDS = (RequestError, NonFiniteError, NotTwiceDifferentiable, OutOfMemory, HessianLRError)


class Board(Protocol):
    """Where ranks leave word beside their sums: who has come to the present one, and who is missing."""

    def arrive(self) -> None:
        """This rank has come to the next sum."""

    def missing(self) -> str:
        """Which ranks have not, in words."""

    def first_here(self) -> AbstractContextManager[None]:
        """What is fetched or made once a machine."""


class Team:
    """The processes that share a sample; alone unless it is given a group.

    Attributes:
        rank: This one's place in the group.
        size: How many there are.
        sharded: Whether they hold one model in pieces.

    Args:
        group: A process group of torch.distributed that this process belongs to.
        board: Names the ranks that are missing; without it a loss is told without names.
    """

    sharded = False

    def __init__(self, group: dist.ProcessGroup | None = None, board: Board | None = None) -> None:
        self._group, self._board = group, board
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    def first_here(self) -> AbstractContextManager[None]:
        """For what is fetched or made once a machine: its first rank goes first."""
        return nullcontext() if self._board is None else self._board.first_here()

    def share(self, loads: Sequence[int]) -> list[int]:
        """Which of some pieces of work are this rank's, in order: the largest first to whoever has least."""
        if self.size == 1:
            return list(range(len(loads)))
        taken = [0] * self.size
        mine = []
        for index in sorted(range(len(loads)), key=lambda i: (-loads[i], i)):
            rank = taken.index(min(taken))
            taken[rank] += loads[index]
            if rank == self.rank:
                mine.append(index)
        return sorted(mine)

    def told_by_first(self, value: Any) -> Any:
        """Rank 0's value on every rank, whatever the others gave.

        Raises:
            RankError: a rank is gone.
        """
        if self.size == 1:
            return value
        told = [value]
        with self._whole():
            dist.broadcast_object_list(told, group=self._group, group_src=0)
        return told[0]

    def fill_from_first(self, tensor: Tensor) -> None:
        """Put rank 0's numbers into a tensor of the same shape and type on every rank.

        Raises:
            RankError: a rank is gone.
        """
        if self.size > 1:
            with self._whole():
                dist.broadcast(tensor, group=self._group, group_src=0)

    @contextmanager
    def summing(
        self, *tensors: Tensor, alike: Sequence[Tensor | str] = (), of: str = "vector"
    ) -> Iterator[None]:
        """On leaving, the tensors are their sums over all ranks, by one all-reduce.

        What fails inside on one rank fails on all of them with its message; they stay in step.

        Args:
            tensors: Changed in place; the same shapes, types and number on every rank, on one device. They
                travel in float64 if the largest is that, else in float32.
            alike: What must be the same on every rank, to the last bit, such as what all of them multiply.
            of: What to call it.

        Raises:
            HessianLRError: another rank failed (of the same kind as there).
            RequestError: something is not alike.
            RankError: a rank is gone.
        """
        if self.size == 1:
            yield
            return
        failure = None
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            failure = error
        self._sum(tensors, failure, alike, of)

    def _sum(
        self, tensors: Sequence[Tensor], failure: Exception | None, alike: Sequence[Tensor | str], of: str
    ) -> None:
        head = torch.zeros(1 + self.size, dtype=torch.float32, device=tensors[0].device)
        head[0] = failure is not None
        head[1 + self.rank] = _stamp(alike)
        largest = max(tensors, key=torch.numel)
        kind = working_type(largest)
        buffer = torch.cat([head.to(kind), *(t.detach().reshape(-1).to(kind) for t in tensors)])
        with self._whole():
            dist.all_reduce(buffer, group=self._group)
            failed, *stamps = buffer[: len(head)].tolist()
        if failed:
            self._fail(failure)
        if odd := [rank for rank, other in enumerate(stamps) if other != stamps[0]]:
            raise RequestError(
                f"rank {odd[0]} has another {of} than rank 0: every rank needs the same model, the same "
                "whole sample in the same order, the same arguments, and a machine of the same kind with as "
                "many threads (OMP_NUM_THREADS)"
            )
        sizes = [t.numel() for t in tensors]
        for tensor, total in zip(tensors, buffer[len(head) :].split(sizes), strict=True):
            tensor.copy_(total.view_as(tensor))

    def _fail(self, failure: Exception | None) -> None:
        """Tell all ranks which failed, and raise the first one's failure on each."""
        kind = next((i for i, one in enumerate(_KINDS) if isinstance(failure, one)), len(_KINDS) - 1)
        known = isinstance(failure, FAILURES)
        said = f"{failure}" if known and f"{failure}" else f"{type(failure).__name__}: {failure}"
        told: list[tuple[int, str] | None] = [None] * self.size
        with self._whole():
            dist.all_gather_object(told, None if failure is None else (kind, said), group=self._group)
        first = next(rank for rank, one in enumerate(told) if one is not None)
        entry = told[first]
        assert entry is not None
        error = _KINDS[entry[0]](f"rank {first}: {entry[1]}")
        error.__context__ = failure
        raise error

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Within it, a group that is no longer whole is an error that says so."""
        if self._board is not None:
            self._board.arrive()
        try:
            yield
        except RuntimeError as error:
            who = "another rank is" if self._board is None else self._board.missing()
            raise RankError(
                f"{who} gone (killed, out of memory, its machine lost or stopped): the ranks cannot go on "
                "without it, and no result was made"
            ) from error


class ShardedTeam(Team):
    """Processes that hold one model in pieces, and so can only run it together: each does all the work.

    FSDP2 gathers the pieces of a layer for the time it needs them, on all ranks at once, and leaves each its
    piece of the gradients' mean: of the same sample, which is the gradient.
    """

    sharded = True

    def share(self, loads: Sequence[int]) -> list[int]:
        """All of it."""
        return list(range(len(loads)))

    def _sum(
        self, tensors: Sequence[Tensor], failure: Exception | None, alike: Sequence[Tensor | str], of: str
    ) -> None:
        """Rank 0's numbers on every rank; what is sharded needs no sum."""
        told = [torch.zeros(1, device=tensors[0].device)]
        told += [tensor for tensor in tensors if not isinstance(tensor, DTensor)]
        if self.rank:
            for tensor in told:
                tensor.zero_()
        super()._sum(told, failure, alike, of)


_ALONE = Team()
_current: ContextVar[Team] = ContextVar("team", default=_ALONE)


def team() -> Team:
    """The processes that share the work here: this one alone, outside ``across_ranks``."""
    return _current.get()


@contextmanager
def across_ranks(
    group: dist.ProcessGroup | None = None, board: Board | None = None, *, sharded: bool = False
) -> Iterator[Team]:
    """Inside it, what is measured is measured once by all processes of a group, each on its share.

    Every process of the group must enter it, hold the same model, make the same calls and give each the
    *same whole sample*: nobody cuts the batches beforehand, as a data loader of distributed training does.
    Each gets the same result. Outside it every process measures what it is given, by itself, also where
    torch.distributed has been initialised.

    Args:
        group: A process group; None: the default one.
        board: See ``Team``.
        sharded: The model lies in pieces on these processes, by FSDP2's ``fully_shard``: each then runs the
            whole sample, and products are central differences.

    Raises:
        RequestError: torch.distributed has not been initialised, or this process is not in the group.
    """
    if not dist.is_initialized():
        raise RequestError(
            "across_ranks() needs a process group: call torch.distributed.init_process_group() first, in a "
            "program started by torchrun"
        )
    joined = dist.group.WORLD if group is None else group
    if joined is None or dist.get_rank(joined) < 0:
        raise RequestError("this process does not belong to the group that was given to across_ranks()")
    token = _current.set((ShardedTeam if sharded else Team)(joined, board))
    try:
        yield team()
    finally:
        _current.reset(token)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in pieces on several processes; all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's piece of a whole tensor that ``like`` is a piece of, if it is one."""
    if not isinstance(like, DTensor):
        return tensor
    # Every rank has the same whole, so that its piece is cut from its own, without a message.
    mesh = like.device_mesh
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=like.placements)


def _stamp(alike: Sequence[Tensor | str]) -> int:
    """A checksum of their bits and their order; others have the same one with a chance of 2⁻²⁴."""
    checksum = 0
    for one in alike:
        if isinstance(one, str):
            checksum = zlib.crc32(one.encode(), checksum)
            continue
        raw = whole(one.detach()).contiguous().view(-1).view(torch.uint8)
        checksum = zlib.crc32(raw.cpu().numpy().tobytes(), checksum)
    return checksum % _STAMP


#: What makes of a measurement a result without a number, where no fault of the request is behind it.
FAILURES = (HessianLRError, MemoryError, torch.OutOfMemoryError)
#: Those of them that the same call may be spared another time.
MEMORY = (OutOfMemory, MemoryError, torch.OutOfMemoryError)


def failed(error: BaseException) -> str:
    """Why a measurement has no number, of one of ``FAILURES`` that was caught.

    Raises:
        RequestError: the error is one, which nothing but another request mends.
        RankError: the error may be this rank's alone (see ``require_shared``).
    """
    if isinstance(error, RequestError):
        raise error
    require_shared(error)
    return str(error) or type(error).__name__


def require_shared(error: BaseException) -> None:
    """Let an error pass that every rank has, and end the work at one that may be this rank's alone.

    What a rank computes follows from what all of them know, and failures inside ``Team.summing`` are told to
    all; only a rank's own memory may fail it elsewhere. The others would then wait for it in vain.

    Raises:
        RankError: the error may be this rank's alone.
    """
    memory = (MemoryError, torch.OutOfMemoryError)
    if team().size > 1 and (isinstance(error, memory) or isinstance(error.__cause__, memory)):
        raise RankError(str(error) or f"out of memory ({type(error).__name__})") from error
