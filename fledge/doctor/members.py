"""The list of members that is in force here: the kit's, or a newer one that the service has heard of since."""

from __future__ import annotations

from contextlib import closing

from sqlalchemy.exc import DatabaseError

from aggregator.config import AggregatorConfig
from aggregator.journal.history import History
from aggregator.service.service import DATABASE
from deploy.keyfiles import read_bounded
from fledge.doctor.place import Place
from protocol.errors import StateError
from protocol.limits import STORED_RECORD
from protocol.registry import Registry, open_registry
from worker.config import WorkerConfig
from worker.journal.journal import Journal


def newest_registry(place: Place) -> Registry:
    """The newest that is here; what a running service has noted is read beside it.

    Raises:
        ConfigError, WireError: the kit's is missing or not signed by the root.
        StateError: the service's journal cannot be read.
    """
    config = place.config
    given = read_bounded(place.base / config.registry, STORED_RECORD, "the signed registry")
    root = bytes.fromhex(config.root)
    known = [open_registry(raw, root, config.federation) for raw in (given, _noted(place)) if raw is not None]
    return max(known, key=lambda registry: registry.version)


def _noted(place: Place) -> bytes | None:
    config = place.config
    try:
        if isinstance(config, WorkerConfig) and (database := place.base / config.state / "worker.db").exists():
            return Journal.registry_beside(database)
        if isinstance(config, AggregatorConfig) and (database := place.base / config.state / DATABASE).exists():
            with closing(History.open(database)) as history:
                return history.registry_record()
    except DatabaseError as error:
        raise StateError(f"the journal of {place.base} cannot be read: {error.orig}") from error
    return None
