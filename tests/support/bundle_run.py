"""An aggregator whose run is a MONAI bundle's."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fledge.runs.code_archive import load_code
from fledge.runs.init_run import load_genesis
from protocol.envelope import Verified
from protocol.messages import Kind
from tests.support.fake_aggregator import Researchers


class Federation(Researchers):
    """A hub whose run is a bundle's, perhaps with other code than the run's own."""

    def __init__(self, name: str, run: Path, code: bytes = b"") -> None:
        super().__init__(name)
        genesis = load_genesis(run)
        self.spec = genesis.spec
        self.initial = b"".join(genesis.payload())
        self.code_of_run = code or load_code(run)
        self.digest = hashlib.sha256(self.code_of_run).digest()
        self.spec_record = self._put_record(self._seal_blob(Kind.SPEC, 0, self.spec.to_bytes(), b""))

    def model(self, value: float) -> bytes:
        """Version 0, whatever the number."""
        return self.initial

    def next_message(self) -> Verified:
        """What the site sends next; torch may have to be imported before."""
        return self.inbound.get(timeout=60)
