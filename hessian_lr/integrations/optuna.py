"""A prediction as an Optuna search: its range to search in, its learning rate as the first trial.

Optuna itself is not imported: a trial or a study is what the caller has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import HessianLRError
from ..predict import Prediction

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import BaseTrial

NAME = "learning_rate"


def suggest_learning_rate(trial: BaseTrial, prediction: Prediction, name: str = NAME) -> float:
    """A learning rate from the prediction's range, on a logarithmic scale.

    Args:
        trial: Optuna's trial.
        prediction: Its ``lr_low`` and ``lr_high`` are the ends.
        name: The parameter's name in the study.

    Raises:
        HessianLRError: the prediction failed, so that there is no range.
    """
    _, low, high = _rates(prediction)
    return trial.suggest_float(name, low, high, log=True)


def enqueue_prediction(study: Study, prediction: Prediction, name: str = NAME) -> None:
    """Make the predicted learning rate the study's next trial, unless it has been one (a resumed study).

    Raises:
        HessianLRError: the prediction failed.
    """
    lr, _, _ = _rates(prediction)
    study.enqueue_trial({name: lr}, skip_if_exists=True)


def _rates(prediction: Prediction) -> tuple[float, float, float]:
    if prediction.lr is None or prediction.lr_low is None or prediction.lr_high is None:
        raise HessianLRError(
            f"the prediction failed ({'; '.join(prediction.notes)}): there is no range to search in; mend "
            "that, or give suggest_float a range of your own"
        )
    return prediction.lr, prediction.lr_low, prediction.lr_high
