"""The state of a Lanczos iteration on disk, so that one that was killed goes on, bit for bit."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic import write_bytes
from ..distributed import team
from ..errors import HessianLRError, RequestError
from ..records import read_json, write_sealed
from .basis import Basis
from .tridiagonal import Tridiagonal

STATE = "state.json"
# The share of an iteration's time that writing its state may take.
SHARE = 0.02
# What writing is taken to cost until it has been measured: a flush to disk, and a slow disk.
_SECONDS_A_FILE, _SECONDS_A_BYTE = 0.02, 1 / 50e6


class Checkpoint:
    """One iteration's state in a folder of its own: the basis in parts, and ``state.json`` with T.

    After m steps that is α_1…α_m, β_1…β_m and q_1…q_{m+1}, from which step m + 1 follows as if nothing
    had happened. A vector is written once, with all that are new at the time in one file; what is written
    last is ``state.json``, which holds the parts' checksums, its own, and the identity: all that decides
    the numbers.

    Args:
        folder: The folder; made when there is something to write.
        identity: Plain JSON types. A state with another one is not used.

    Attributes:
        notes: What a reader should know: that it went on, or why not, or that the state cannot be kept.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self._identity = identity
        self._parts: list[tuple[int, str]] = []  # vectors and checksum of each
        self._began = time.perf_counter()
        self._spent, self._pace, self._works = 0.0, 1.0, True

    def restore(self, basis: Basis, t: Tridiagonal) -> Tensor | None:
        """Put what was kept into an empty basis and T; the next vector, shape (n,), or None if nothing was.

        A damaged state is named in ``notes``, and not used. Of several ranks the first reads, and hands what
        it found to the others: all go on from the same state, or all begin.
        """
        following = None if team().rank else self._restored(basis, t)
        return following if team().size == 1 else self._handed(basis, t, following)

    def _restored(self, basis: Basis, t: Tridiagonal) -> Tensor | None:
        if not (self.folder / STATE).exists():
            return None
        try:
            state = read_json(self.folder / STATE)
            if state["identity"] != self._identity:
                raise ValueError("it is that of another measurement")
            parts = [(int(count), str(checksum)) for count, checksum in state["parts"]]
            alphas, betas = list(state["alphas"]), list(state["betas"])
            if not len(alphas) == len(betas) == sum(count for count, _ in parts) - 1:
                raise ValueError("its parts do not belong together")
            for index, (count, expected) in enumerate(parts):
                for vector in self._read(index, count, expected, basis.rows):
                    if len(basis) < len(alphas):
                        basis.append(vector)
        except (RequestError, OSError, ValueError, KeyError, TypeError) as error:
            basis.shorten(0)
            self.notes.append(f"the state in {self.folder} cannot be used ({error}): measured from the start")
            return None
        t.alphas, t.betas, self._parts = alphas, betas, parts
        self.notes.append(f"went on after {len(alphas)} products, from {self.folder}")
        return vector

    def _handed(self, basis: Basis, t: Tridiagonal, following: Tensor | None) -> Tensor | None:
        """What the first rank restored, on all of them."""
        kept = team().told_by_first(None if following is None else (t.alphas, t.betas))
        if kept is None:
            return None
        t.alphas, t.betas = kept
        for index in range(len(t.alphas)):
            if team().rank:
                basis.append(basis.rows.new_empty(basis.rows.shape[1]))
            team().fill_from_first(basis.rows[index])
        if following is None:
            following = basis.rows.new_empty(basis.rows.shape[1])
        team().fill_from_first(following)
        return following

    def save(self, basis: Basis, t: Tridiagonal, following: Tensor) -> None:
        """Write what is new, if that keeps writing within ``SHARE`` of the time since the iteration began.

        A disk that cannot be written ends the keeping, not the iteration. Of several ranks, whose states are
        the same to the last bit, the first writes.
        """
        kept = sum(count for count, _ in self._parts)
        new = len(basis) + 1 - kept
        size = following.numel() * following.element_size()
        expected = self._pace * (2 * _SECONDS_A_FILE + new * size * _SECONDS_A_BYTE)
        began = time.perf_counter()
        if team().rank or not self._works or self._spent + expected > SHARE * (began - self._began):
            return
        try:
            vectors = [basis.rows[index] for index in range(kept, len(basis))]
            self._write([*vectors, following])
            state = {"alphas": t.alphas, "betas": t.betas, "parts": self._parts}
            write_sealed(self.folder / STATE, {"schema": 1, "identity": self._identity, **state})
        except HessianLRError as error:
            self._works = False
            self.notes.append(f"its state could not be kept: {error}")
        took = time.perf_counter() - began
        self._spent += took
        self._pace *= took / expected

    def clear(self) -> None:
        """Remove what was kept."""
        if team().rank:
            return
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"basis-{index:04d}.bin"

    def _write(self, vectors: Sequence[Tensor]) -> None:
        content = [vector.cpu().contiguous().numpy().data.cast("B") for vector in vectors]
        write_bytes(self._path(len(self._parts)), *content)
        checksum = hashlib.sha256()
        for one in content:
            checksum.update(one)
        self._parts.append((len(vectors), checksum.hexdigest()))

    def _read(self, index: int, count: int, expected: str, like: Tensor) -> Tensor:
        content = np.fromfile(self._path(index), dtype=np.uint8)
        if hashlib.sha256(content.data).hexdigest() != expected:
            raise ValueError(f"{self._path(index).name} is damaged")
        return torch.from_numpy(content).view(like.dtype).view(count, -1).to(like.device)
