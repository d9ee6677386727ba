"""A sweep over many settings: counted, costed, made, and scored setting by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..atomic import write_bytes
from ..digits import rate
from ..errors import HessianLRError, reason
from ..files import SWEEP_FILE
from ..progress import Progress
from ..records import Record, read_json, write_json
from ..results import Document
from ..rows import Missing, SweepRow
from ..score import chance
from ..setting import Setting
from ..sweep.cost import estimate, to_go
from ..sweep.engine import Engine
from ..sweep.finished import writable
from ..sweep.grid import Grid, share
from ..sweep.merge import belonging, merge, runs_folder
from ..sweep.schedule import Work, by_model, make
from ..sweep.source import Source, assign, strangers
from .measured import (
    Measured,
    Predicting,
    bring,
    has_failed,
    measure,
    scored,
    unmeasured,
)
from .sweep_csv import TABLE, as_csv


@dataclass(frozen=True)
class Plan(Record):
    """What is to be done, told before it is.

    Attributes:
        settings: Number of settings.
        predictions: Number of those that are measured and predicted this time.
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
    predictions: int
    runs: tuple[int, int]
    done: int
    shard: str | None
    to_go: tuple[int, int]
    seconds: tuple[float, float]
    timed: int
    finished: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What is to be done, checked as far as is possible without the models.

    Attributes:
        grid: The settings.
        out: Folder of all results.
        shard: (i, N): make only the i-th of N shares.
        limit: Make at most so many runs.
        predicting: How settings are predicted, each on the first of its seeds; None: not at all.
    """

    grid: Grid
    out: Path
    shard: tuple[int, int] | None = None
    limit: int | None = None
    predicting: Predicting | None = None


class Job:
    """A grid in a folder: ``plan`` tells what is to be done, ``run`` does it."""

    def __init__(self, asked: Asked, source: Source, progress: Progress) -> None:
        """Find what is there.

        Args:
            asked: What is to be done.
            source: Loads models and data.
            progress: Shows how it goes on.

        Raises:
            RequestError: a setting does not fit its model or data.
            HessianLRError: a model or data cannot be loaded.
        """
        self._grid, self._out, self._source, self._progress = asked.grid, asked.out, source, progress
        self._shard, self._limit, self._predicting = asked.shard, asked.limit, asked.predicting
        self._works, self._notes = assign(asked.grid.wanted, source, asked.out / "runs")
        self._mine = self._share(asked.shard)

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
            predictions=len(self._to_predict()),
            runs=(done + sum(low for low, _ in ends), done + sum(high for _, high in ends)),
            done=done,
            shard=None if self._shard is None else "{}/{}".format(*self._shard),
            to_go=cost.runs,
            seconds=cost.seconds,
            timed=cost.timed,
            finished=cost.finished,
            notes=(*self._grid.notes, *self._notes, *self._damage(), *cost.notes),
        )

    def run(self, plan: Plan, engine: Engine) -> Document[SweepRow]:
        """Have ``engine`` make the runs, measure what is to be predicted, then ``write`` all that is there.

        A shard tells of the whole grid's runs too, so whichever ends last leaves the whole table of them.

        Returns:
            What stands in ``sweep.json``.

        Raises:
            HessianLRError: the folder cannot be written, or the engine cannot go on.
        """
        folder = writable(self._out / "runs")
        failed = make(self._mine, engine, limit=self._limit, report=self._report)
        measured = self._measured(engine)
        copies, others = strangers(self._works, folder)
        notes = [*plan.notes, *self._damage(), *copies, *engine.notes]
        if others:
            notes.append(
                f"{others} more in {folder}: runs of settings, learning rates or seeds that are not asked "
                "for; they were left alone"
            )
        return self.write(notes, failed, measured)

    def merge(self, folders: Sequence[Path]) -> Document[SweepRow]:
        """Bring the runs and measurements of other folders into this one, then ``write`` all that is there.

        Returns:
            What stands in ``sweep.json``.

        Raises:
            RequestError: two folders contradict each other, or there is no such folder.
            HessianLRError: the folder cannot be written.
        """
        notes = merge(self._works, folders, writable(self._out / "runs"))
        notes += tuple(bring([runs_folder(folder).parent for folder in folders], self._out))
        return self.write([*self._grid.notes, *self._notes, *notes], {}, {})

    def write(
        self, notes: Sequence[str], failed: Mapping[Setting, Exception], measured: Mapping[Setting, Measured]
    ) -> Document[SweepRow]:
        """Write ``sweep.json`` and ``sweep.csv`` of all that is there.

        Args:
            notes: What a reader should know.
            failed: Why settings have runs missing.
            measured: What is known of settings beside their runs.

        Returns:
            What stands in ``sweep.json``.
        """
        settings = [work.wanted.setting for work in self._works]
        rows = [
            self._row(work, failed.get(setting), measured.get(setting))
            for work, setting in zip(self._works, settings, strict=True)
        ]
        path = self._out / SWEEP_FILE
        told = tuple(dict.fromkeys([*notes, *self._written_over(path)]))
        head = {"file": self._grid.path, "varying": list(self._grid.varying)}
        document = Document(head, tuple(rows), told)
        write_json(path, document.to_dict())
        write_bytes(self._out / TABLE, as_csv(rows).encode())
        return document

    def _share(self, shard: tuple[int, int] | None) -> tuple[Work, ...]:
        if shard is None:
            return self._works
        of = {work.wanted.setting: work.finished for work in self._works}
        return tuple(Work(one, of[one.setting]) for one in share(self._grid.wanted, *shard))

    def _written_over(self, path: Path) -> list[str]:
        """Notes on what the file has that is written over, and is not asked for: predictions, and runs."""
        try:
            rows = read_json(path)["results"] if path.exists() else []
            predictors = {row["predictor"] for row in rows} - {None}
            runs = {run["key"] for row in rows for run in row["runs"]} - dict(belonging(self._works)).keys()
        except (HessianLRError, KeyError, TypeError):
            return []
        notes = [
            f"{path} had predictions, which were not asked for: predictor {name} has them there again, and "
            "measures nothing twice"
            for name in (sorted(predictors) if self._predicting is None else ())
        ]
        if runs:
            many = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
            notes.append(
                f"{path} was a table with {many} that {self._grid.path} does not ask for: their files stay, "
                "and a grid that asks for them has them there again"
            )
        return notes

    def _to_predict(self) -> tuple[Work, ...]:
        if self._predicting is None:
            return ()
        first, step = (0, 1) if self._shard is None else (self._shard[0] - 1, self._shard[1])
        return self._works[first::step]

    def _measured(self, engine: Engine) -> dict[Setting, Measured]:
        """What is known of the settings that are to be predicted, model by model."""
        if self._predicting is None:
            return {}
        works, found = self._to_predict(), {}
        for index, place in enumerate(by_model(work.wanted.setting for work in works), 1):
            wanted = works[place].wanted
            self._progress.method(self._grid.label(wanted.setting), index, len(works))
            setting = replace(wanted.setting, seed=min(wanted.seeds))
            model, data = self._source.model(setting), self._source.data(setting)
            places: dict[str, Any] = {"out": self._out, "progress": self._progress, "engine": engine}
            try:
                found[wanted.setting] = measure(setting, model, data, self._predicting, **places)
            except (HessianLRError, MemoryError) as error:  # the others keep theirs
                found[wanted.setting] = unmeasured(setting, self._predicting, reason(error))
        return found

    def _damage(self) -> list[str]:
        return list(dict.fromkeys(note for work in self._works for note in work.finished.notes))

    def _report(self, done: int, planned: int, setting: Setting, lr: float, last: float | None) -> None:
        loss = "" if last is None else f", last loss {last:.3f}"
        self._progress.report("runs", done, planned, f"{self._grid.label(setting)} at {rate(lr)}{loss}")

    def _row(self, work: Work, error: Exception | None, measured: Measured | None) -> SweepRow:
        now, wanted, asked = work.standing(), work.wanted, self._predicting
        failure = None if error is None else str(error) or type(error).__name__
        status = "failed" if failure else "partial" if now.missing else "complete"
        notes, predicted = [failure] if failure else [], None
        if measured is not None and asked is not None:
            predicted = "failed" if has_failed(measured, asked) else measured.prediction.status
            notes += [*measured.notes, *measured.prediction.notes, *measured.failures]
        if rugged := chance(now.runs):
            notes.append(rugged)
        data_digest, model_fingerprint = work.finished.identity
        return SweepRow(
            method=wanted.setting.method,
            label=self._grid.label(wanted.setting),
            setting={name: value for name, value in wanted.setting.to_dict().items() if name != "seed"},
            seeds=tuple(wanted.seeds),
            lrs="auto" if wanted.lrs is None else tuple(wanted.lrs),
            status=status if now.runs or failure else "missing",
            prediction_status=predicted,
            missing=tuple(Missing(lr, one.seed) for one, lr in now.missing),
            data_digest=data_digest,
            model_fingerprint=model_fingerprint,
            notes=tuple(dict.fromkeys(notes)),
            **scored(now.runs, wanted.seeds, measured, asked),
        )
