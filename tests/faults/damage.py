"""Trials of files that were cut short, or in which a bit flipped."""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from pathlib import Path

from hessian_lr.records import read_json

from .harness import answers, document, save_model
from .undisturbed import NUMBERS, Undisturbed

Outcomes = Counter[str]
# A moment around a write (see ``server.die_at_write``) at which predict has kept a state or two.
_HALF_WAY = 20


def damage(path: Path, draw: random.Random, *, cut: bool, among: range | None = None) -> None:
    """Cut a file at a random byte, or flip one random bit of it; ``among`` these bytes."""
    content = bytearray(path.read_bytes())
    at = draw.choice(among or range(len(content)))
    if cut:
        content = content[:at]
    else:
        content[at] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def damaged_files(whole: Undisturbed, count: int) -> Outcomes:
    """A file of a finished validate cut short, or with a bit flipped: made again, or read as it was."""
    draw, outcomes = random.Random("damage"), Counter[str]()
    for index in range(count):
        with whole.fresh("validate") as parent:
            folder = parent / "runs-here"
            shutil.copytree(whole.folder, folder)
            path = draw.choice(sorted(p for p in folder.rglob("*.json") if p.name != "calibration.json"))
            damage(path, draw, cut=bool(index % 2))
            if path.name == "validate.json":
                command = ["calibrate", str(folder), "--out", str(parent / "calibration.json")]
                ended = whole.server.run(command)
                if ended.status == 0:
                    assert document(parent / "calibration.json") == whole.answers["calibrate"]
                else:
                    assert ended.status == 2 and "validate.json" in ended.stderr, ended
                    outcomes["refused by calibrate, with its name"] += 1
            ended = whole.server.run(whole.command("validate", folder))
            assert ended.status == 0, ended
            assert whole.answer("validate", folder) == whole.answers["validate"]
            whole.complete_runs(folder)
            named = path.name in ended.stderr or path.name in (folder / "validate.json").read_text()
            outcomes["named, and made again" if named else "harmless, or written anew"] += 1
    return outcomes


def damaged_states(whole: Undisturbed, count: int) -> Outcomes:
    """The state of a killed predict: named, and measured from the start, or harmless; the same answer."""
    draw, outcomes = random.Random("states"), Counter[str]()
    for index in range(count):
        with whole.fresh("predict") as folder:
            command = whole.command("predict", folder)
            ended = whole.server.run(command, keep_state_always=True, die_at_write=_HALF_WAY)
            assert ended.status == -signal.SIGKILL, ended
            kept = [p for p in (folder / "state").rglob("*") if p.suffix in (".json", ".bin")]
            damage(draw.choice(sorted(kept)), draw, cut=bool(index % 2))
            said = whole.completes("predict", folder).stderr
            named = "cannot be used" in said or "was not used" in said
            assert named or "went on after" in said, said
            outcomes["named, not used" if named else "went on all the same"] += 1
            outcomes["completed with the same answer"] += 1
    return outcomes


def damaged_weights(whole: Undisturbed, count: int) -> Outcomes:
    """A model's safetensors: an error that names it, or what the file now says.

    The format has no checksum: a bit flipped within a weight gives another weight, which nobody can know.
    """
    draw, outcomes = random.Random("weights"), Counter[str]()
    for index in range(count):
        with whole.fresh("weights") as folder:
            model = folder / "model"
            save_model(model)
            path = model / "model.safetensors"
            size = path.stat().st_size
            header = range(8 + int.from_bytes(path.read_bytes()[:8], "little"))
            where = ("cut short", "bit flipped in its header", "bit flipped in a weight")[index % 3]
            among = {0: range(size), 1: header, 2: range(header.stop, size)}[index % 3]
            damage(path, draw, cut=index % 3 == 0, among=among)
            ended = whole.server.run(whole.server.predict(folder, model=model))
            assert "Traceback" not in ended.stderr and "unexpected" not in ended.stderr, ended
            if not (folder / "predict.json").exists():
                assert ended.status == 1 and str(model) in ended.stderr, ended
                outcomes[f"{where}: refused, with its name"] += 1
                continue
            assert where != "cut short", ended
            (row,) = read_json(folder / "predict.json")["results"]
            if ended.status:
                assert all(row[name] is None for name in NUMBERS), row
                outcomes[f"{where}: failed, no number"] += 1
            elif answers(row) == whole.answers["predict"]["results"][0]:
                outcomes[f"{where}: harmless"] += 1
            else:
                assert where == "bit flipped in a weight", ended
                outcomes[f"{where}: not noticed, measured as it stands"] += 1
    return outcomes
