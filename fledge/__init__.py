"""fledge: asynchronous federated learning for hospitals over a message queue.

What users import is here and nowhere else; each name is loaded when it is first used, so `import fledge` costs
nothing and needs no training library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aggregator.service.service import AggregatorService
    from fledge.bootstrap import open_aggregator, open_worker
    from fledge.federation import new_federation
    from protocol.errors import Aborted, ConfigError, FledgeError, TrainingError
    from worker.api.trainer import Control, EvaluationResult, Trainer, TrainResult
    from worker.rehearsal import rehearse
    from worker.service.service import WorkerService
    from worker.trainers.numpy import EstimatorTrainer, NumpyTrainer
    from worker.trainers.torch import TorchTrainer

_HOMES = {
    "Aborted": "protocol.errors",
    "AggregatorService": "aggregator.service.service",
    "ConfigError": "protocol.errors",
    "Control": "worker.api.trainer",
    "EstimatorTrainer": "worker.trainers.numpy",
    "EvaluationResult": "worker.api.trainer",
    "FledgeError": "protocol.errors",
    "NumpyTrainer": "worker.trainers.numpy",
    "TorchTrainer": "worker.trainers.torch",
    "TrainResult": "worker.api.trainer",
    "Trainer": "worker.api.trainer",
    "TrainingError": "protocol.errors",
    "WorkerService": "worker.service.service",
    "new_federation": "fledge.federation",
    "open_aggregator": "fledge.bootstrap",
    "open_worker": "fledge.bootstrap",
    "rehearse": "worker.rehearsal",
}
"""Where each public name lives."""

__all__ = [
    "Aborted",
    "AggregatorService",
    "ConfigError",
    "Control",
    "EstimatorTrainer",
    "EvaluationResult",
    "FledgeError",
    "NumpyTrainer",
    "TorchTrainer",
    "TrainResult",
    "Trainer",
    "TrainingError",
    "WorkerService",
    "new_federation",
    "open_aggregator",
    "open_worker",
    "rehearse",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fledge-fl")
    if name not in _HOMES:
        raise AttributeError(f"fledge has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
