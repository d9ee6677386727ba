"""The finished runs in a folder: one file a run, named by all that decides it, written at once."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from ..errors import HessianLRError, RequestError
from ..records import write_sealed
from ..setting import Setting
from .run import RunResult, run_key


class Finished:
    """The finished runs of one model and data in a folder: one file a run, ``<key>.json``.

    Attributes:
        folder: The folder; it need not exist.
        notes: What a reader should know of the files, such as which were damaged.
        identity: The digest of the data, and the model's fingerprint.
    """

    def __init__(self, folder: Path, data_digest: str, model_fingerprint: str) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.identity = (data_digest, model_fingerprint)
        self._read: dict[str, RunResult] = {}

    def path(self, setting: Setting, lr: float) -> Path:
        """The file of a run."""
        return self.folder / f"{run_key(setting, lr, *self.identity)}.json"

    def find(self, setting: Setting, lr: float) -> RunResult | None:
        """The run, or None if its file is not there or is not what it should be."""
        path = self.path(setting, lr)
        if path.stem not in self._read and path.exists():
            try:
                stored = RunResult.read(path)
                if stored.key == path.stem and stored.lr == lr and stored.setting.seed == setting.seed:
                    self._read[path.stem] = stored
                else:
                    self._note(f"{path} describes another run (key {stored.key!r}); it has to be run again")
            except RequestError as error:
                self._note(f"{path} is damaged, so it has to be run again: {error}")
        found = self._read.get(path.stem)
        # Where the model and data lay, and on what device it ran, may differ: only the key counts.
        return None if found is None else dataclasses.replace(found, setting=setting)

    def add(self, run: RunResult) -> None:
        """Write a run that was just made.

        Raises:
            HessianLRError: the folder cannot be written.
        """
        write_sealed(self.folder / f"{run.key}.json", run.to_dict())
        self._read[run.key] = run

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def writable(folder: Path) -> Path:
    """The folder, made if missing, and proven writable: found now, not after the first hour of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(b"x")
    except OSError as error:
        raise HessianLRError(
            f"cannot write to {folder}: {error.strerror or error}; name another folder with --out"
        ) from error
    return folder
