"""An aggregator in this process, sites' hands at the wire, and what comes back to them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.config import RunConfig, StopConfig, StrategyConfig
from aggregator.pipeline.genesis import Genesis
from aggregator.service.assembly import assemble_aggregator
from aggregator.service.service import AggregatorService
from aggregator.service.settings import FirstRun
from broker.blobs.base import BlobStore
from broker.transport.base import Transport
from protocol import limits, topology
from protocol.codec import unpack
from protocol.envelope import unlock, verify
from protocol.messages import Kind, Outcome, Receipt
from protocol.spec import ModelSpec
from tests.support.bodies import typed_body
from tests.support.chunks import cut
from tests.support.collect import Collector
from tests.support.federation import FEDERATION, RUN, SMALL, Federation, Site, payload

STALE_LIMIT = 3
WAIT_S = 20.0


def run_config(**changes: Any) -> RunConfig:
    """A run that merges every update at once, so that each test sees its own update become a version."""
    strategy = StrategyConfig.model_validate({"name": "fedasync", "stale_limit": STALE_LIMIT})
    settings: dict[str, Any] = {"name": RUN, "strategy": strategy, "stop": StopConfig(), "release_decay": 0.0}
    return RunConfig(**(settings | changes))


@dataclass(frozen=True, slots=True)
class Word:
    """A receipt with what its envelope says."""

    receipt: Receipt
    version: int


class Centre:
    """A running aggregator and its sites' mailboxes."""

    def __init__(
        self,
        federation: Federation,
        service: AggregatorService,
        transport: Transport,
        store: BlobStore,
        spec: ModelSpec,
    ) -> None:
        self.federation = federation
        self.service = service
        self.transport = transport
        self.store = store
        self.spec = spec
        self._inboxes = {name: Collector() for name in federation.members}
        self._letters = Collector()
        self.sites = {name: Site(federation, name, store, spec) for name in federation.members}

    def listen(self, letters: bool) -> None:
        """Take every site's receipts, and the dead letters if they are wanted, from now on."""
        present = {p.name for p in self.service.registry.members(self.federation.members["site-0"].role)}
        for name in present:
            self.transport.consume(topology.inbox_queue(name), self._inboxes[name])
        if letters:
            self.transport.consume(topology.DEAD_LETTERS, self._letters)

    def send(self, site: str, raw: bytes) -> Future[None]:
        """Publish as the site's worker would."""
        return self.transport.publish(topology.up_exchange(site), "", raw)

    def good(self, site: str, seed: int = 0) -> bytes:
        """A sound update from the current version."""
        return self.sites[site].update(small_delta(self.spec, seed), base=self.service.rules.runs[RUN].version)

    def inbox(self, site: str) -> Collector:
        """What a site has got, as it came."""
        return self._inboxes[site]

    def words(self, site: str) -> list[Word]:
        """The receipts a site has got."""
        return [self._word(site, raw) for raw in self._inboxes[site].bodies]

    def receipt(self, site: str, message: bytes, *outcomes: Outcome) -> Word:
        """Wait for a receipt on the message with this id (of one of these outcomes)."""

        def wanted(raw: bytes) -> bool:
            word = self._word(site, raw)
            return word.receipt.message == message and (not outcomes or word.receipt.outcome in outcomes)

        what = f"a receipt for {site}"
        self._inboxes[site].wait_until(lambda bodies: any(map(wanted, bodies)), what, WAIT_S)
        return self._word(site, next(filter(wanted, self._inboxes[site].bodies)))

    def letter(self, raw: bytes) -> dict[str, Any]:
        """Wait for the dead letter that holds these bytes."""
        kept = raw[: limits.MESSAGE - 1024]

        def mine(body: bytes) -> bool:
            return bool(read_letter(body)["message"] == kept)

        self._letters.wait_until(lambda bodies: any(map(mine, bodies)), "the dead letter", WAIT_S)
        return read_letter(next(filter(mine, self._letters.bodies)))

    def merged(self, site: str, raw: bytes) -> Word:
        """Send an update and wait until it is merged."""
        self.send(site, raw).result(WAIT_S)
        return self.receipt(site, message_id(raw, self.federation), Outcome.MERGED)

    def _word(self, site: str, raw: bytes) -> Word:
        verified = verify(raw, self.federation.registry, federation=FEDERATION, kinds={Kind.RECEIPT})
        key = unlock(verified, self.federation.members[site])
        return Word(typed_body(verified, key), verified.core.version)


def read_letter(body: bytes) -> dict[str, Any]:
    """A dead letter's fields."""
    letter: dict[str, Any] = unpack(body, limits.MESSAGE)
    return letter


def message_id(raw: bytes, federation: Federation) -> bytes:
    """The id of an update's message."""
    verified = verify(raw, federation.registry, federation=FEDERATION, kinds={Kind.UPDATE})
    return verified.core.id


def small_delta(spec: ModelSpec, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Harmless values for every floating tensor."""
    dice = np.random.default_rng(seed)
    return {t.name: dice.normal(0, 0.01, t.shape).astype(np.float32) for t in spec.tensors if t.name in spec.names}


def genesis(spec: ModelSpec, values: Mapping[str, NDArray[Any]] | None = None) -> Genesis:
    """Version 0 with these values, zeros for the others."""
    model = payload(spec, values or {}, update=False)
    return Genesis(spec, lambda: cut(model))


@contextmanager
def running(
    federation: Federation,
    transport: Transport,
    store: BlobStore,
    state: Path | None,
    *,
    spec: ModelSpec = SMALL,
    config: RunConfig | None = None,
    letters: bool = True,
) -> Iterator[Centre]:
    """An aggregator that serves until the end of the block."""
    service = assemble_aggregator(
        federation.aggregator_settings(),
        transport=transport,
        store=store,
        state=state,
        first=FirstRun(config=config or run_config(), genesis=genesis(spec)),
    )
    service.start()
    centre = Centre(federation, service, transport, store, spec)
    centre.listen(letters)
    try:
        yield centre
    finally:
        service.stop()
        service.join(WAIT_S)


def peak_memory() -> int:
    """The most resident memory this process has had since `reset_peak`, in bytes."""
    return _status("VmHWM")


def memory() -> int:
    """This process's resident memory, in bytes."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Begin to measure `peak_memory` anew."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _status(field: str, pid: int | None = None) -> int:
    with open(f"/proc/{pid or os.getpid()}/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
