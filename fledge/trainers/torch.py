"""Models of torch: give a network, a data set and a loss."""

from worker.trainers.torch import TorchTrainer, accuracy

__all__ = ["TorchTrainer", "accuracy"]
