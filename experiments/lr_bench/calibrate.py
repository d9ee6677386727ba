"""Fit the package's constants to the bench: `python -m experiments.lr_bench.calibrate`.

Writes ``hessian_lr/predict/calibration.json``. The fit is to all settings but the longest. The range comes
from settings whose method was left out, or from those of a model that was left out, of whichever model it has
to be widest for: a user's is another one. With the real model's go those that came later and are in no fit.
The longest are a test (``long``): a law whose range holds there is
known for so many steps. The law for short runs, which settings of 60 steps and more have, is fitted to all of
these, the longest too, and to what `hessian-lr validate --predictor probe` found on the real model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import hessian_lr.predict
from hessian_lr.predict.calibration import Calibration
from hessian_lr.predict.extent import EXTENT
from hessian_lr.predict.fit import conformal
from hessian_lr.predict.law import PowerLaw

from .beyond import sizes, with_extent
from .evaluate import scored
from .held_out import fit, left_out, predict, usable
from .laws import LAWS, Law
from .price import MANY
from .prospective import covered, predicted
from .table import LONG, PROBE, PROBED, UNSEEN, from_documents, read
from .transfer import transfer_law

VERSION = "2026.11-m"
# The law of each predictor; the package's quantities that its terms are made of; their columns.
PREDICTORS = {
    "combined": "combined",
    "adam": "adam",
    "eigenvalue": "eigenvalue",
}
COMPOSED = {
    "stability_over_probe": {"lr_stability": 1.0, "lr_probe": -1.0},
    "stability_over_critical": {"lr_stability": 1.0, "lr_critical_start": -1.0},
    "stability_over_eigenvalue": {"lr_stability": 1.0, "lr_eigenvalue": -1.0},
    "critical_over_eigenvalue": {"lr_critical_start": 1.0, "lr_eigenvalue": -1.0},
}
REFERENCES = {"batch_size": 4.0, "steps": 60.0}
# The share of 80% ranges that must hold the best learning rate for the test to be stood.
HOLDS = 0.75
# How far a user's own model may lie from these, in ln η: the spread of the models' mean errors, rounded up.
SCALE_SPREAD = 0.3


def calibration(
    table: pd.DataFrame, longest: pd.DataFrame, probed: pd.DataFrame, after: pd.DataFrame
) -> Calibration:
    """The predictors' laws.

    Args:
        table: The settings they are fitted to.
        longest: Those of the longest runs, of which the laws of curvature alone take nothing but how long
            they are, and whether a law's range holds there.
        probed: Those of the real model that had short runs, for the law for these.
        after: Its others that came later. Neither is in a fit of the laws of curvature, both count for how
            wide their ranges are.
    """
    laws = {law.name: law for law in LAWS}
    unseen = pd.concat([after, probed], ignore_index=True)
    fitted = {predictor: power_law(laws[name], table, unseen) for predictor, name in PREDICTORS.items()}
    sized = with_extent(table, sizes(sorted(table["model"].unique())))
    fitted = {predictor: carried_from(measured_on(law, table), sized) for predictor, law in fitted.items()}
    longer = {predictor: known_to(law, float(longest["steps"].max())) for predictor, law in fitted.items()}
    probe = power_law(laws[PROBE], pd.concat([table, longest, probed], ignore_index=True))
    made = Calibration(schema=1, version=VERSION, **longer, transfer=transfer_law(table), probe=probe)
    held = {name: covered(predicted(name, made, longest), longest) for name in fitted}
    return replace(made, **{name: law for name, law in fitted.items() if held[name] < HOLDS})


def tables() -> list[pd.DataFrame]:
    """What ``calibration`` takes, in its order."""
    bench, longest = read()[0], read(LONG)[0]
    later = [from_documents(folder)[0].reindex(columns=bench.columns) for folder in (PROBED, UNSEEN)]
    return [scored(one) for one in (bench, longest, *later)]


def known_to(law: PowerLaw, steps: float) -> PowerLaw:
    """The law, known for runs of up to so many steps."""
    told = law.sources["domain"] + f"; up to the {steps:g} steps of a test that no fit took part of (long)"
    low, _ = law.domain["steps"]
    return replace(law, domain=law.domain | {"steps": [low, steps]}, sources=law.sources | {"domain": told})


def measured_on(law: PowerLaw, table: pd.DataFrame) -> PowerLaw:
    """The law, known for curvature of as few rows as the table's, up to those that ``price`` tried."""
    told = law.sources["domain"] + f"; rows measured on, up to the {MANY} of a test (price)"
    samples = [float(table["samples"].min()), float(MANY)]
    return replace(law, domain=law.domain | {"samples": samples}, sources=law.sources | {"domain": told})


def carried_from(law: PowerLaw, sized: pd.DataFrame) -> PowerLaw:
    """The law, known for models and adapters of the table's sizes."""
    ends = {name: [float(sized[name].min()), float(sized[name].max())] for name in EXTENT}
    return replace(law, domain=law.domain | ends)


def power_law(law: Law, table: pd.DataFrame, unseen: pd.DataFrame | None = None) -> PowerLaw:
    """The law fitted to the table; its range also from what no fit has seen of one of its models."""
    rows = table[usable(law, table)]
    weights = fit(law, rows)
    exponents: dict[str, float] = {}
    for term, weight in zip(law.terms, weights[1:], strict=True):
        for name, power in COMPOSED.get(term, {term: 1.0}).items():
            exponents[name] = exponents.get(name, 0.0) + power * float(weight)
    references = {name: value for name, value in REFERENCES.items() if name in exponents}
    errors = {}
    for kind in ("method", "model"):
        predicted = left_out(law, rows, rows[kind])
        errors[kind] = np.log(predicted / rows["best_lr"]).to_numpy()
    half = [conformal(np.abs(errors["method"]))]
    for name in rows["model"].unique():
        own = errors["model"][rows["model"] == name]
        if unseen is not None and name in set(unseen["model"]):
            more = unseen[(unseen["model"] == name) & usable(law, unseen)]
            own = np.concatenate([own, np.log(predict(law, weights, more) / more["best_lr"])])
        half.append(conformal(np.abs(own)))
    source = (
        f"robust fit to {len(rows)} settings of {rows['model'].nunique()} models and "
        f"{rows['method'].nunique()} methods (experiments/lr_bench)"
    )
    made = PowerLaw(
        scale=1.0,
        exponents=exponents,
        references=references,
        log_scatter=float(max(np.sqrt(np.mean(found**2)) for found in errors.values())),
        settings=len(rows),
        sources=dict.fromkeys(("scale", *exponents), source)
        | {"log_scatter": "root mean square of the errors on a method or model left out, whichever is larger"}
        | {"log_half_width": "80% quantile of those errors, of methods' or the hardest model's"}
        | {"domain": "the smallest and largest of the same settings"},
        spreads={"scale": SCALE_SPREAD},
        log_half_width=max(half),
        # Not of the learning rates: where they lie depends on the parameters' units.
        domain={name: [float(rows[name].min()), float(rows[name].max())] for name in REFERENCES},
    )
    # The table's law has no references: η = e^c · Π quantity^w.
    scale = weights[0] + sum(exponents[name] * np.log(value) for name, value in references.items())
    return replace(made, scale=float(np.exp(scale)))


def main() -> None:
    file = Path(hessian_lr.predict.__file__).parent / "calibration.json"
    found = calibration(*tables())
    found.write(file)
    for name in (*PREDICTORS, PROBE):
        law = getattr(found, name)
        exponents = ", ".join(f"{key}^{value:.2f}" for key, value in law.exponents.items())
        print(f"{name}: {law.scale:.3g}, {exponents}, range ×÷ {law.range_factor():.2f}")


if __name__ == "__main__":
    main()
