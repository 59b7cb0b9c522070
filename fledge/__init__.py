"""fledge: asynchronous federated learning for hospitals over a message queue.

What users import is here and nowhere else; each name is loaded when it is first used, so `import fledge` costs
nothing and needs no training library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aggregator.service import AggregatorService as AggregatorService
    from fledge.bootstrap import open_aggregator as open_aggregator
    from fledge.bootstrap import open_worker as open_worker
    from fledge.federation import new_federation as new_federation
    from fledge.init_run import init_run as init_run
    from protocol.errors import ConfigError as ConfigError
    from protocol.errors import FledgeError as FledgeError
    from protocol.errors import TrainingError as TrainingError
    from worker.service import WorkerService as WorkerService

_HOMES = {
    "AggregatorService": "aggregator.service",
    "ConfigError": "protocol.errors",
    "FledgeError": "protocol.errors",
    "TrainingError": "protocol.errors",
    "WorkerService": "worker.service",
    "init_run": "fledge.init_run",
    "new_federation": "fledge.federation",
    "open_aggregator": "fledge.bootstrap",
    "open_worker": "fledge.bootstrap",
}
"""Where each public name lives."""

__all__ = [
    "AggregatorService",
    "ConfigError",
    "FledgeError",
    "TrainingError",
    "WorkerService",
    "init_run",
    "new_federation",
    "open_aggregator",
    "open_worker",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fledge-fl")
    if name not in _HOMES:
        raise AttributeError(f"fledge has no {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})
