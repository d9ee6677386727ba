"""The recommendation: one sentence with its range and its confidence, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from ..digits import rate
from ..predict.law import COVERAGE
from ..rows import MeasuredRow, ScoredRow
from ..score import BAND_REGRET
from ..setting import SGD
from ..verdict import GOOD, Verdict, best_loss, verdict
from .documents import Entry
from .numbers import factor, measured, regret
from .sections import Sourced, labels
from .view import Advice

_MOST = 3  # methods that a sentence names

SPAN = Markup("{} to {}")
CHOICE = Markup('<strong class="choice">{}</strong>')


def advice(rows: Sequence[Sourced]) -> Advice:
    """What these results on one setting recommend: a sweep's best before a prediction."""
    swept = _named([one for one in rows if one[1].panel is not None])
    if swept:
        return _from_sweeps([entry.row for entry in swept if isinstance(entry.row, ScoredRow)])
    predicted = _named([one for one in rows if one[1].predicted[0] is not None])
    if predicted:
        return _from_predictions(predicted)
    return _from_nothing(_named(rows))


def _named(rows: Sequence[Sourced]) -> list[Entry]:
    """The rows as a sentence calls them: by their method, and their file where the method comes again."""
    return [
        replace(entry, row=replace(entry.row, method=label))
        for label, (_, entry) in zip(labels(rows), rows, strict=True)
    ]


def _from_sweeps(rows: Sequence[ScoredRow]) -> Advice:
    found = verdict(rows)
    if not found.ranked:
        if found.diverged:
            return Advice(Markup("Every run diverged: run smaller learning rates."))
        return Advice(
            Markup(
                "No learning rate that was run lowered the held-out loss: check the data, or run more steps."
            )
        )
    best = found.ranked[0]
    reasons = [*_ground(found, rows), *_prediction(best)]
    if best.censored:
        rates = {run.lr for run in best.runs}
        side = "only one" if len(rates) == 1 else "smallest" if best.best_lr == min(rates) else "largest"
        sentence = Markup(
            "Run more learning rates before you settle: {} did best at {}, the {} of its sweep, and the best "
            "may lie beyond."
        ).format(best.method, CHOICE.format(rate(best.best_lr)), side)
        return Advice(sentence, reasons)
    return Advice(
        Markup("Train {} at a learning rate of {}: by interpolation between {}, {}.").format(
            best.method, CHOICE.format(rate(best.best_lr)), _confidence(best), _band(best)
        ),
        reasons,
    )


def _band(row: ScoredRow) -> Markup:
    low, high = row.band_low, row.band_high
    kept = f"kept {1 - BAND_REGRET:.0%} of the improvement"
    if low is not None and high is not None:
        return Markup("anything from {} {}").format(SPAN.format(rate(low), rate(high)), kept)
    if low is not None:
        return Markup("anything from {} up to the largest that was run {}").format(rate(low), kept)
    if high is not None:
        return Markup("anything up to {} {}").format(rate(high), kept)
    return Markup("any that was run {}").format(kept)


def _confidence(row: ScoredRow) -> str:
    seeds = len({run.seed for run in row.runs})
    return f"{_many(len(row.runs), 'short run')} with {_many(seeds, 'seed')}"


def _ground(found: Verdict[ScoredRow], rows: Sequence[ScoredRow]) -> list[str]:
    best = found.ranked[0]
    before = best.runs[0].initial_loss
    reasons = [
        f"The lowest held-out loss of its runs is {best.best_loss:.3f} nats per token; before training it "
        f"was {before:.3f}."
    ]
    near = _equals(found.ranked)
    if near:
        named = _listed([f"{row.method} at {rate(row.best_lr)}" for row in near])
        reasons.append(f"As good, within {BAND_REGRET:.0%} of the improvement: {named}.")
    elif len(found.ranked) > 1:
        after = found.ranked[1]
        reasons.append(f"Next is {after.method} with {after.best_loss:.3f} at {rate(after.best_lr)}.")
    if len({run.seed for run in best.runs}) == 1:
        reasons.append("With one seed, how far chance moves these losses is not known.")
    if found.judged > 1:
        reasons.append(
            f"The predictions made before the runs were within {GOOD}× of the best learning rate for "
            f"{found.good} of {found.judged} methods."
        )
    if lost := [row.method for row in rows if row.best_lr is None]:
        reasons.append(f"No learning rate lowered the loss with {_listed(lost)}.")
    return reasons


def _equals(ranked: Sequence[ScoredRow]) -> list[ScoredRow]:
    """The methods whose best loss is as good as the first one's by the measure of its own band."""
    best = ranked[0]
    level = best_loss(best) + BAND_REGRET * (best.runs[0].initial_loss - best_loss(best))
    return [row for row in ranked[1:] if best_loss(row) <= level]


def _prediction(row: ScoredRow) -> list[str]:
    if row.predicted_lr is None:
        return []
    text = f"The prediction for {row.method} was {rate(row.predicted_lr)}"
    if row.predicted_low is not None and row.predicted_high is not None:
        text += f" ({COVERAGE:.0%} range {rate(row.predicted_low)} to {rate(row.predicted_high)})"
    # Where the best may lie beyond the sweep, no prediction can be judged by it.
    if row.factor_error is not None and not row.censored:
        text += f", {factor(row.factor_error)} off"
    if row.regret is not None and not row.censored:
        text += f"; training there would have given up {regret(row)} of the improvement"
    return [f"{text}."]


def _from_predictions(entries: Sequence[Entry]) -> Advice:
    rows, parts = [entry.row for entry in entries], []
    for entry in entries[:_MOST]:
        lr, low, high = map(rate, entry.predicted)
        parts.append(Markup("{} at {} ({})").format(entry.method, CHOICE.format(lr), SPAN.format(low, high)))
    more = f" and {len(rows) - _MOST} more as listed below" if len(rows) > _MOST else ""
    sentence = Markup(
        "Start {}{}: the best learning rate lay in such a range for about {} of the settings behind the "
        "constants."
    ).format(Markup(", ").join(parts), more, f"{COVERAGE:.0%}")
    versions = sorted({str(row.calibration) for row in rows if isinstance(row, MeasuredRow)})
    reasons = [
        f"The range is the {COVERAGE:.0%} prediction interval of the settings that the constants "
        f"({_listed(versions)}) were fitted to; it promises less for a setting unlike them. No run has "
        "tested it here: `hessian-lr validate` does."
    ]
    if any(row.status == "budget" for row in rows):
        stopped = [row.method for row in rows if row.status == "budget"]
        reasons.append(
            f"The measurement stopped at a limit, of products or of memory, for {_listed(stopped)}."
        )
    return Advice(sentence, reasons)


def _from_nothing(entries: Sequence[Entry]) -> Advice:
    known = [entry.row for entry in entries if entry.row.lambda_max is not None]
    if not known:
        return Advice(Markup("Nothing could be measured here; the notes below say why."))
    text = _listed([f"{row.method} {measured(row.lambda_max, row.sampling_error)}" for row in known[:_MOST]])
    return Advice(
        Markup("The sharpness λ was measured ({}), which by itself recommends no learning rate.").format(
            text
        ),
        [
            "`hessian-lr validate` on the same setting finds one."
            if entries[0].setting.optimizer == SGD
            else "`hessian-lr predict` on the same setting gives one, with a range."
        ],
    )


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
