"""From curvature to a learning rate with a range."""

from .calibration import Calibration, load_calibration
from .prediction import Prediction
from .predictor import PREDICTORS, predict_learning_rate
from .refine import refine_learning_rate

__all__ = [
    "PREDICTORS",
    "Calibration",
    "Prediction",
    "load_calibration",
    "predict_learning_rate",
    "refine_learning_rate",
]
