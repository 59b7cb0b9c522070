"""fledge: asynchronous federated learning for hospitals over a message queue.

What users import is here and in `fledge.trainers`, and nowhere else; docs/extending.md says what it is for. Each name
is loaded when it is first used, so `import fledge` costs nothing and needs no training library.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aggregator.service.service import AggregatorService as AggregatorService
    from aggregator.strategy.base import Scalars as Scalars
    from aggregator.strategy.base import Scratch as Scratch
    from aggregator.strategy.base import Span as Span
    from aggregator.strategy.base import Strategy as Strategy
    from aggregator.strategy.base import directions as directions
    from aggregator.strategy.staleness import StalenessPolicy as StalenessPolicy
    from aggregator.strategy.staleness import staleness_policy as staleness_policy
    from broker.blobs.base import BlobStore as BlobStore
    from broker.blobs.base import ObjectInfo as ObjectInfo
    from broker.blobs.base import check_bytes as check_bytes
    from broker.blobs.base import check_head as check_head
    from broker.blobs.base import check_key as check_key
    from broker.blobs.base import check_prefix as check_prefix
    from broker.blobs.open import open_blobs as open_blobs
    from broker.net.schemes import Connection as Connection
    from broker.net.schemes import Scheme as Scheme
    from broker.net.tls import Tls as Tls
    from broker.transport.base import Delivery as Delivery
    from broker.transport.base import Handler as Handler
    from broker.transport.base import Settlement as Settlement
    from broker.transport.base import Subscription as Subscription
    from broker.transport.base import Transport as Transport
    from broker.transport.base import check_size as check_size
    from broker.transport.open import open_transport as open_transport
    from fledge.bootstrap import open_aggregator as open_aggregator
    from fledge.bootstrap import open_worker as open_worker
    from fledge.federation import new_federation as new_federation
    from protocol.errors import Aborted as Aborted
    from protocol.errors import ConfigError as ConfigError
    from protocol.errors import Corrupt as Corrupt
    from protocol.errors import DataError as DataError
    from protocol.errors import Diverged as Diverged
    from protocol.errors import FledgeError as FledgeError
    from protocol.errors import Missing as Missing
    from protocol.errors import NotAllowed as NotAllowed
    from protocol.errors import OutOfMemory as OutOfMemory
    from protocol.errors import QueueFull as QueueFull
    from protocol.errors import StateError as StateError
    from protocol.errors import StoreError as StoreError
    from protocol.errors import TooLarge as TooLarge
    from protocol.errors import TrainingError as TrainingError
    from protocol.errors import TransportError as TransportError
    from protocol.errors import Unroutable as Unroutable
    from protocol.errors import WireError as WireError
    from protocol.messages import Fingerprint as Fingerprint
    from protocol.spec import ModelSpec as ModelSpec
    from protocol.spec import TensorKind as TensorKind
    from protocol.spec import TensorSpec as TensorSpec
    from protocol.topology import Binding as Binding
    from protocol.topology import Exchange as Exchange
    from protocol.topology import Queue as Queue
    from protocol.topology import Topology as Topology
    from worker.api.division import Divisible as Divisible
    from worker.api.division import Holdings as Holdings
    from worker.api.filters import FilterChain as FilterChain
    from worker.api.filters import PrivacyFilter as PrivacyFilter
    from worker.api.filters import privacy_filters as privacy_filters
    from worker.api.fingerprint import fingerprint as fingerprint
    from worker.api.trainer import Control as Control
    from worker.api.trainer import EvaluationResult as EvaluationResult
    from worker.api.trainer import Trainer as Trainer
    from worker.api.trainer import TrainResult as TrainResult
    from worker.api.weights import Piece as Piece
    from worker.api.weights import Weights as Weights
    from worker.rehearsal import rehearse as rehearse
    from worker.service.service import WorkerService as WorkerService
    from worker.trainers.numpy import EstimatorTrainer as EstimatorTrainer
    from worker.trainers.numpy import NumpyTrainer as NumpyTrainer
    from worker.trainers.torch import TorchTrainer as TorchTrainer

_NAMES = {
    "aggregator.service.service": ("AggregatorService",),
    "aggregator.strategy.base": ("Scalars", "Scratch", "Span", "Strategy", "directions"),
    "aggregator.strategy.staleness": ("StalenessPolicy", "staleness_policy"),
    "broker.blobs.base": ("BlobStore", "ObjectInfo", "check_bytes", "check_head", "check_key", "check_prefix"),
    "broker.blobs.open": ("open_blobs",),
    "broker.net.schemes": ("Connection", "Scheme"),
    "broker.net.tls": ("Tls",),
    "broker.transport.base": ("Delivery", "Handler", "Settlement", "Subscription", "Transport", "check_size"),
    "broker.transport.open": ("open_transport",),
    "fledge.bootstrap": ("open_aggregator", "open_worker"),
    "fledge.federation": ("new_federation",),
    "protocol.errors": (
        *("Aborted", "ConfigError", "Corrupt", "DataError", "Diverged", "FledgeError", "Missing", "NotAllowed"),
        *("OutOfMemory", "QueueFull", "StateError", "StoreError", "TooLarge", "TrainingError", "TransportError"),
        *("Unroutable", "WireError"),
    ),
    "protocol.messages": ("Fingerprint",),
    "protocol.spec": ("ModelSpec", "TensorKind", "TensorSpec"),
    "protocol.topology": ("Binding", "Exchange", "Queue", "Topology"),
    "worker.api.division": ("Divisible", "Holdings"),
    "worker.api.filters": ("FilterChain", "PrivacyFilter", "privacy_filters"),
    "worker.api.fingerprint": ("fingerprint",),
    "worker.api.trainer": ("Control", "EvaluationResult", "TrainResult", "Trainer"),
    "worker.api.weights": ("Piece", "Weights"),
    "worker.rehearsal": ("rehearse",),
    "worker.service.service": ("WorkerService",),
    "worker.trainers.numpy": ("EstimatorTrainer", "NumpyTrainer"),
    "worker.trainers.torch": ("TorchTrainer",),
}
"""The public names by the module they live in; the same as above."""
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def _torch_is_here() -> bool:
    """Whether torch is installed."""
    try:
        return find_spec("torch") is not None
    except ImportError:  # somebody's finder says no by an error
        return False


__all__ = [name for name in _HOMES if name != "TorchTrainer" or _torch_is_here()]


def __getattr__(name: str) -> Any:  # PEP 562; type checkers read the imports above
    if name == "__version__":
        from importlib.metadata import version

        return version("fledge-fl")
    if name not in _HOMES:
        raise AttributeError(f"fledge has no {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        found = getattr(sys.modules.get(package), "__file__", None)
        if package not in {home.partition(".")[0] for home in _NAMES} or not found or _is_ours(found):
            raise
        raise ImportError(
            f"fledge needs its own package {package!r}, but Python finds {found} first; rename that file, "
            "or uninstall what it belongs to",
            name=error.name,
            path=found,
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _is_ours(file: str) -> bool:
    return _beside(file) == _beside(__file__)


def _beside(file: str) -> str:
    return os.path.realpath(os.path.dirname(os.path.dirname(os.path.abspath(file))))
