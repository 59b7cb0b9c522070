"""Models in numpy arrays, and estimators of scikit-learn that have `partial_fit`; needs no torch."""

from worker.trainers.numpy import EstimatorTrainer, NumpyTrainer

__all__ = ["EstimatorTrainer", "NumpyTrainer"]
