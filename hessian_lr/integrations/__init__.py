"""Predictions inside the tools that train: transformers' Trainer, TRL, accelerate, Optuna."""

from .optuna import enqueue_prediction, suggest_learning_rate
from .trainer import PredictedLearningRate
from .unwrap import unwrapped

__all__ = ["PredictedLearningRate", "enqueue_prediction", "suggest_learning_rate", "unwrapped"]
