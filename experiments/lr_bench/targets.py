"""The targets that were set, beside what was measured: `python -m experiments.lr_bench.targets`.

Nothing is measured or fitted here: it reads what ``evaluate``, ``noise``, ``long``, ``prospective`` and
``price`` have written, and the shipped constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hessian_lr.predict import load_calibration
from hessian_lr.records import read_json

from .evaluate import scored
from .settings import LARGE
from .table import HERE, LONG, read

KINDS = ("method", "model")
OURS, SAME = "combined", ", same settings"
# Rules that users go by and candidates of theory, and how many times further off they were to be.
BASELINES = {
    "3e-4": 2.0,
    "2e-4": 2.0,
    "constant fitted": 2.0,
    "Tinker's formula": 2.0,
    "c / lambda": 1.5,
    "c / sqrt lambda": 1.5,
    "critical at start": 1.5,
    "range test, valley": 1.5,
    "range test, steepest": 1.5,
    "range test, minimum / 10": 1.5,
}
WORDS = {
    "constant fitted": "one constant, fitted to the others",
    "c / lambda": "c / λ",
    "c / sqrt lambda": "c / √λ",
    "critical at start": "c · η_c at the start",
}
MET, MISSED = "met", "**missed**"


@dataclass(frozen=True)
class Row:
    """One target: what was asked, and what came of it with a method and with a model left out."""

    target: str
    asked: str
    measured: tuple[str, str]
    met: tuple[bool, bool]

    def told(self) -> str:
        """The row in Markdown."""
        word = MET if all(self.met) else MISSED
        if any(self.met) and not all(self.met):
            word = f"{KINDS[self.met.index(True)]}: met, {KINDS[self.met.index(False)]}: missed"
        return f"| {self.target} | {self.asked} | {self.measured[0]} | {self.measured[1]} | {word} |"


def _scores() -> dict[tuple[str, str], dict[str, Any]]:
    rows = read_json(HERE / "evaluation.json")["rows"]
    return {(row["law"], row["left_out"]): row for row in rows}


def quality() -> list[Row]:
    """The targets on the predictions themselves."""
    scores = _scores()
    ours = [scores[OURS, kind] for kind in KINDS]

    def row(target: str, asked: str, form: str, met: Any) -> Row:
        one, two = (form.format(**score) for score in ours)
        return Row(target, asked, (one, two), (met(ours[0]), met(ours[1])))

    return [
        row(
            "factor off, median / 90%",
            "≤ 1.3 / ≤ 2",
            "{median_factor:.2f} / {p90_factor:.2f}",
            lambda s: s["median_factor"] <= 1.3 and s["p90_factor"] <= 2,
        ),
        row("within 1% regret", "≥ 80%", "{in_band:.0%}", lambda s: s["in_band"] >= 0.8),
        row(
            "regret, median / 90%",
            "≤ 0.5% / ≤ 2%",
            "{median_regret:.1%} / {p90_regret:.1%}",
            lambda s: s["median_regret"] <= 0.005 and s["p90_regret"] <= 0.02,
        ),
        row(
            "80% range: holds, median width",
            "75 to 90%, ≤ 3×",
            "{coverage:.0%}, {median_width:.1f}×",
            lambda s: 0.75 <= s["coverage"] <= 0.9 and s["median_width"] <= 3,
        ),
        row("diverged at the prediction", "0", "{diverged}", lambda s: not s["diverged"]),
        row("cost, of the sweep it replaces", "≤ 5%", "{cost:.0%}", lambda s: s["cost"] <= 0.05),
    ]


def baselines() -> list[Row]:
    """How many times further off each baseline is in the median, on the settings that it was tried on."""
    scores, found = _scores(), []
    for name, least in BASELINES.items():
        suffix = SAME if name.startswith("range test") else ""
        told, ratios = [], []
        for kind in KINDS:
            theirs = scores.get((name, kind)) or scores[name, "nothing fitted"]
            ours = scores[OURS, kind + suffix]
            if theirs["settings"] != ours["settings"]:
                raise ValueError(f"{name} was scored on other settings than {OURS}")
            ratios.append(theirs["median_factor"] / ours["median_factor"])
            told.append(f"{theirs['median_factor']:.2f}, {ratios[-1]:.2f}×")
        met = (ratios[0] >= least, ratios[1] >= least)
        found.append(Row(WORDS.get(name, name), f"≥ {least:g}×", (told[0], told[1]), met))
    return found


def short_sweep() -> list[Row]:
    """Against the sweep at a tenth of the steps: no worse at equal cost, so all three count."""
    scores, found = _scores(), []
    rival = [scores["tenth of the steps, free", kind] for kind in KINDS]
    for name, suffix in ((OURS, SAME), ("eigenvalue", SAME), ("probe", "")):
        ours = [scores[name, kind + suffix] for kind in KINDS]
        one, two = (_beside(*pair) for pair in zip(ours, rival, strict=True))
        met = [_no_worse(*pair) for pair in zip(ours, rival, strict=True)]
        found.append(Row(f"`{name}`, 60 and 120 steps", "no worse", (one, two), (met[0], met[1])))
    long = {row["predictor"]: row for row in read_json(LONG / "evaluation.json")["rows"]}
    for name in (OURS, "eigenvalue", "probe"):
        # Fitted to the shorter runs of all methods and models: one column serves both.
        pair = (long[name], long["tenth of the steps, free"])
        told, met_ = _beside(*pair), _no_worse(*pair)
        found.append(Row(f"`{name}`, 300 steps, fitted to shorter", "no worse", (told, told), (met_, met_)))
    return found


def _beside(ours: dict[str, Any], rival: dict[str, Any]) -> str:
    forms = ("{median_factor:.2f} / {p90_factor:.2f} for {cost:.1%}".format(**one) for one in (ours, rival))
    return " against ".join(forms)


def _no_worse(ours: dict[str, Any], rival: dict[str, Any]) -> bool:
    """Costs that show as the same percentage are equal."""
    near = all(ours[name] <= rival[name] for name in ("median_factor", "p90_factor"))
    return near and round(ours["cost"], 2) <= round(rival["cost"], 2)


def limits() -> dict[str, Any]:
    """What stands in the way, in numbers: seeds, bands, the range that ships, the price."""
    noise, table = read_json(HERE / "noise.json"), scored(read()[0])
    scores, price = _scores(), read_json(HERE / "price.json")["findings"]
    band = np.sqrt(table["band_high"] / table["band_low"]).dropna()
    large = table[table["model"] == LARGE]
    (cheap,) = (
        one
        for one in price
        if (one["law"], one["left_out"], one["way"])
        == (OURS, "method", "2 rows, 5 warm-up steps, 6 and 4 products")
    )
    law, long = load_calibration().combined, read_json(LONG / "evaluation.json")["rows"]
    earlier = read_json(HERE / "prospective.json")["rows"][0]
    seeds = noise["summary"]
    told = {
        "another seed's best: factor, median": seeds["median_factor"],
        "another seed's best: within 1% regret": seeds["in_band"],
        "another seed's best: regret, median": seeds["median_regret"],
        "another seed's best: regret, 90%": seeds["p90_regret"],
        "settings with two seeds": seeds["settings"],
        "half-width of the 1% band, median": float(band.median()),
        "bands narrower than ×÷ 1.29": float((band < scores[OURS, "method"]["median_factor"]).mean()),
        "shipped range's width": law.range_factor() ** 2,
        "earlier range on later settings": earlier["coverage"],
        "cost at 60 and 120 steps": scores[OURS, "method" + SAME]["cost"],
        "cost at 300 steps": next(row["cost"] for row in long if row["predictor"] == OURS),
        "cost on SmolLM2": float((large["combined_cost"] / large["sweep_cost"]).median()),
        "cost on two rows at 60 and 120 steps": cheap["price, 60 and 120"],
        "factor on two rows, 90%": cheap["p90_factor"],
    }
    for kind in KINDS:
        against = noise["against_noise"][f"{OURS}, {kind} left out"]
        told[f"not told from none, {kind} left out"] = against["not_told_from_none"]
        told[f"within 1% regret of two seeds, {kind} left out"] = against["in_band"]
        told[f"regret of two seeds, 90%, {kind} left out"] = against["p90_regret"]
    for name, least in BASELINES.items():
        if (name, "model") in scores:
            told[f"to be {least:g}× nearer than {name}"] = scores[name, "model"]["median_factor"] / least
    told["to be 2× nearer than Tinker's formula"] = (
        scores["Tinker's formula", "nothing fitted"]["median_factor"] / 2
    )
    return told


def shown() -> str:
    """The tables in Markdown."""
    head = "| target | asked | method left out | model left out | |\n|---|---|---|---|---|"
    baseline = "| baseline: its factor, over ours | asked | method left out | model left out | |\n"
    return "\n".join(
        [
            head,
            *(row.told() for row in quality()),
            "",
            baseline + "|---|---|---|---|---|",
            *(row.told() for row in baselines()),
            "",
            "| against a tenth of the steps | asked | method left out | model left out | |\n"
            "|---|---|---|---|---|",
            *(row.told() for row in short_sweep()),
        ]
    )


def main() -> None:
    print(shown(), end="\n\n")
    for name, value in limits().items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
