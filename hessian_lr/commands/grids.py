"""A sweep over many settings: counted, costed, made, and scored setting by setting."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import results
from ..digits import rate
from ..progress import Progress
from ..records import Record, write_bytes, write_json
from ..score import Score, score
from ..setting import Setting
from ..sweep import RunResult, Sweep, complete_runs
from ..sweep.cost import estimate, to_go
from ..sweep.engine import Engine
from ..sweep.finished import writable
from ..sweep.grid import Grid, share
from ..sweep.merge import merge
from ..sweep.runner import censored
from ..sweep.schedule import Work, make
from ..sweep.wanted import Wanted
from ..sweep.work import Source, assign, strangers

TABLE, DOCUMENT = "sweep.csv", "sweep.json"
BEST = ("best_lr", "best_loss", "band_low", "band_high", "censored")
_SETTING = tuple(field.name for field in fields(Setting) if field.name != "seed")
_UNSCORED = Score(None, None, None, None, True, None, None, None, None, None, None)


@dataclass(frozen=True)
class Plan(Record):
    """What is to be done, told before it is.

    Attributes:
        settings: Number of settings.
        runs: The fewest and the most runs of them all; they differ where a search decides as it goes.
        done: Runs that are there.
        shard: Which share is made, such as ``"2/4"``; None: all.
        to_go: The fewest and the most runs to make this time.
        seconds: The same in wall time.
        timed: Shapes (model, data, batch size) of which steps were timed.
        finished: Finished runs that told how long their like take.
        notes: What a reader should know.
    """

    settings: int
    runs: tuple[int, int]
    done: int
    shard: str | None
    to_go: tuple[int, int]
    seconds: tuple[float, float]
    timed: int
    finished: int
    notes: tuple[str, ...]


class Job:
    """A grid in a folder: ``plan`` tells what is to be done, ``run`` does it."""

    def __init__(
        self,
        grid: Grid,
        out: Path,
        source: Source,
        progress: Progress,
        *,
        shard: tuple[int, int] | None = None,
        limit: int | None = None,
    ) -> None:
        """Find what is there.

        Args:
            grid: The settings.
            out: Folder of all results.
            source: Loads models and data.
            progress: Shows how it goes on.
            shard: (i, N): make only the i-th of N shares.
            limit: Make at most so many runs.

        Raises:
            RequestError: a setting does not fit its model or data.
            HessianLRError: a model or data cannot be loaded.
        """
        self._grid, self._out, self._source, self._progress = grid, out, source, progress
        self._shard, self._limit = shard, limit
        self._works, self._notes = assign(grid.wanted, source, out / "runs")
        self._mine = self._share(shard)

    def plan(self) -> Plan:
        """Count the runs and what they cost."""
        standing = [work.standing() for work in self._works]
        cost = estimate(
            self._mine,
            [run for now in standing for run in now.runs],
            self._source,
            limit=self._limit,
            report=lambda done, total: self._progress.report("timing", done, total, ""),
        )
        ends = [to_go(work.wanted, now) for work, now in zip(self._works, standing, strict=True)]
        done = sum(len(now.runs) for now in standing)
        return Plan(
            settings=len(self._works),
            runs=(done + sum(low for low, _ in ends), done + sum(high for _, high in ends)),
            done=done,
            shard=None if self._shard is None else "{}/{}".format(*self._shard),
            to_go=cost.runs,
            seconds=cost.seconds,
            timed=cost.timed,
            finished=cost.finished,
            notes=(*self._grid.notes, *self._notes, *self._damage(), *cost.notes),
        )

    def run(self, plan: Plan, engine: Engine) -> dict[str, Any]:
        """Have ``engine`` make the runs, then ``write`` all that is there.

        A shard tells of the whole grid too, so whichever ends last leaves the whole table.

        Returns:
            What stands in ``sweep.json``.

        Raises:
            HessianLRError: the folder cannot be written, or the engine cannot go on.
        """
        folder = writable(self._out / "runs")
        failed = make(self._mine, engine, limit=self._limit, report=self._report)
        copies, others = strangers(self._works, folder)
        notes = [*plan.notes, *self._damage(), *copies, *engine.notes]
        if others:
            notes.append(
                f"{others} more in {folder}: runs of settings, learning rates or seeds that are not asked "
                "for; they were left alone"
            )
        return self.write(notes, failed)

    def merge(self, folders: Sequence[Path]) -> dict[str, Any]:
        """Bring the runs of other folders into this one, then ``write`` all that is there.

        Returns:
            What stands in ``sweep.json``.

        Raises:
            RequestError: two folders contradict each other, or there is no such folder.
            HessianLRError: the folder cannot be written.
        """
        notes = merge(self._works, folders, writable(self._out / "runs"))
        return self.write([*self._grid.notes, *self._notes, *notes], {})

    def write(self, notes: Sequence[str], failed: Mapping[Setting, Exception]) -> dict[str, Any]:
        """Write ``sweep.json`` and ``sweep.csv`` of all that is there.

        Args:
            notes: What a reader should know.
            failed: Why settings have runs missing.

        Returns:
            What stands in ``sweep.json``.
        """
        rows = [self._row(work, failed.get(work.wanted.setting)) for work in self._works]
        document = {
            "schema": results.SCHEMA,
            "varying": list(self._grid.varying),
            "results": rows,
            "versions": results.versions(),
            "notes": list(dict.fromkeys(notes)),
        }
        write_json(self._out / DOCUMENT, document)
        write_bytes(self._out / TABLE, _csv(rows).encode())
        return document

    def _share(self, shard: tuple[int, int] | None) -> tuple[Work, ...]:
        if shard is None:
            return self._works
        of = {work.wanted.setting: work.finished for work in self._works}
        return tuple(Work(one, of[one.setting]) for one in share(self._grid.wanted, *shard))

    def _damage(self) -> list[str]:
        return list(dict.fromkeys(note for work in self._works for note in work.finished.notes))

    def _report(self, done: int, planned: int, setting: Setting, lr: float, last: float | None) -> None:
        loss = "" if last is None else f", last loss {last:.3f}"
        self._progress.report("runs", done, planned, f"{self._grid.label(setting)} at {rate(lr)}{loss}")

    def _row(self, work: Work, error: Exception | None) -> dict[str, Any]:
        now, wanted = work.standing(), work.wanted
        failure = None if error is None else str(error) or type(error).__name__
        status = "failed" if failure else "partial" if now.missing else "complete"
        found = _scored(wanted, now.runs)
        return {
            "label": self._grid.label(wanted.setting),
            "setting": {name: value for name, value in wanted.setting.to_dict().items() if name != "seed"},
            "seeds": list(wanted.seeds),
            "lrs": "auto" if wanted.lrs is None else list(wanted.lrs),
            "status": status if now.runs or failure else "missing",
            **{name: getattr(found, name) for name in BEST},
            "runs": [_run_row(run) for run in now.runs],
            "missing": [{"lr": lr, "seed": one.seed} for one, lr in now.missing],
            "notes": [failure] if failure else [],
        }


def _scored(wanted: Wanted, runs: Sequence[RunResult]) -> Score:
    """The best learning rate of those that were run with every seed."""
    if {run.setting.seed for run in runs} != set(wanted.seeds) or not complete_runs(runs):
        return _UNSCORED
    return score(Sweep(wanted.setting, tuple(runs), censored(runs)), None, None, None)


def _run_row(run: RunResult) -> dict[str, Any]:
    return {"key": run.key, **results.run_row(run), "train_tokens": run.train_tokens}


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return value["path"]  # an adapter of the user's own
    return ",".join(value) if isinstance(value, list) else value


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a run, with its setting and what was found for that beside it."""
    columns = ("lr", "seed", "initial_loss", "final_loss", "steps_done", "diverged", "seconds")
    text = io.StringIO()
    names = [*_SETTING, *columns, "train_tokens", "key", *BEST, "status"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        setting = {name: _cell(value) for name, value in row["setting"].items()}
        best = {name: row[name] for name in (*BEST, "status")}
        for run in row["runs"]:
            # "steps" is the setting's number; the run's own is less where it diverged early.
            writer.writerow({**run, "steps_done": run["steps"], **setting, **best})
    return text.getvalue()
