"""A `monai.fl.client.ClientAlgo` of your own."""

from worker.trainers.monai_algo import ClientAlgoTrainer

__all__ = ["ClientAlgoTrainer"]
