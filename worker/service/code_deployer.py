"""Orders about runs, as far as they take reading: arguments, and the code that a deployment names.

The order is the chain of trust: an operator with the right to deploy here has signed the SHA-256 of the archive, for
this run. The hub holds and wraps the archive, and can neither replace it nor deploy it.
"""

from __future__ import annotations

import re

from broker.blobs.base import BlobStore
from broker.blobs.transfer import read_whole
from protocol import limits
from protocol.errors import ConfigError, DiskFull, StateError, StoreError, Unauthorized
from protocol.topology import model_chunk, record_key
from worker.domain.events import CommandSeen, RunCommanded
from worker.inspection.arguments import Arguments
from worker.pipeline.code_loader import may_bring_code
from worker.pipeline.context import SiteContext
from worker.policy import SitePolicy
from worker.storage.code_store import CodeStore

RUN_COMMANDS = frozenset({"run.deploy", "run.withdraw", "run.join", "run.leave"})
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}|")


class CodeDeployer:
    """Does what a command about a run takes before the rules can decide it; on the thread that obeys."""

    def __init__(self, codes: CodeStore, store: BlobStore, policy: SitePolicy, context: SiteContext) -> None:
        self._codes = codes
        self._store = store
        self._policy = policy
        self._reader = context.reader
        self._log = context.log

    def prepare(self, seen: CommandSeen) -> RunCommanded:
        """Read a command; a deployment's code is in the site's keeping afterwards.

        Raises:
            ConfigError: an argument is wrong.
            Unauthorized: code may not be brought here, or not this one.
            WireError: the record or the code is not what the command names.
            StoreError, StateError: it cannot be fetched or kept now; the command may be repeated.
        """
        given = Arguments(seen.command, seen.arguments)
        run = given.text("run")
        if not _RUN.fullmatch(run):
            raise ConfigError(f"{seen.command}: {run[:64]!a} is no name of a run")
        code = record = ""
        if seen.command == "run.deploy":
            code, record = given.text("code", ""), given.text("record", "")
            if not (_DIGEST.fullmatch(code) and _DIGEST.fullmatch(record)) or bool(code) != bool(record):
                raise ConfigError(
                    f"{seen.command}: code and record are SHA-256 digests in lower-case hex, or both empty"
                )
        given.done()
        if code:
            self._fetch(run, bytes.fromhex(code), record)
        return RunCommanded(command=seen, run=run, code=bytes.fromhex(code))

    def forget(self, code: bytes) -> None:
        """Delete code that no run is deployed with."""
        self._codes.forget(code)
        self._log.info("code.dropped")

    def _fetch(self, run: str, code: bytes, record: str) -> None:
        reader = self._reader()
        may_bring_code(reader, run)
        try:
            self._policy.check_code(code.hex())
        except ConfigError as error:
            raise Unauthorized(str(error), "code_not_listed") from error
        try:
            found = reader.code(self._store.get(record_key(record), limits.STORED_RECORD), run)
            raw = read_whole(self._store, found.key.reader(found.manifest), model_chunk)
        except StoreError as error:  # its text may name the hospital's proxy or a signed address
            kind = type(error).__name__
            raise StoreError(f"the store did not give the code of run {run} ({kind}); order it again later") from error
        try:
            self._codes.keep(code, raw)
        except StateError as error:  # its text names folders of the hospital
            what = "there is no room for it" if isinstance(error, DiskFull) else "it cannot be written"
            raise StateError(f"this site cannot keep the code of run {run}: {what}; ask somebody there") from error
        self._log.info("code.kept", run=run, bytes=len(raw))
