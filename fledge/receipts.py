"""Receipts as files: what the aggregator signed about one update, and the same in words, for anybody to check offline.

A file is one JSON object: `says` (for people), `record` (the signed envelope, base64) and, where the record was sealed
for one site, `key`, which opens this record alone. What `says` says counts for nothing but being compared.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime

from protocol import limits, unique_json
from protocol.codec import Plain
from protocol.envelope import ContentKey, Core, Verified, body, disclosed, unlock, verify
from protocol.errors import Malformed, Tampered, WireError
from protocol.keys import Identity
from protocol.messages import Attestation, Kind, Outcome, Receipt
from protocol.registry import Registry

_KINDS = frozenset({Kind.RECEIPT, Kind.ATTESTATION})
_FORMAT = 1
_PARTS = frozenset({"receipt", "says", "record", "key"})
_SHOWN = 80
LIMIT = 64 * 1024
"""Bytes of a receipt's file; the largest honest one has some 3,000."""

Facts = dict[str, Plain]


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A record of the aggregator about one update, with what opens it."""

    record: bytes
    key: bytes = b""
    """Empty where the record is in the clear."""

    @classmethod
    def opened(cls, record: bytes, identity: Identity, registry: Registry, federation: str) -> SignedReceipt:
        """A receipt as its site got it, with the key that the site's own keys find in it.

        Raises:
            WireError: it is not the aggregator's, or not for this site.
        """
        verified = _verified(record, registry, federation)
        return cls(record, unlock(verified, identity).secret if verified.recipients else b"")

    def facts(self, registry: Registry, federation: str) -> Facts:
        """What was signed, in words.

        Raises:
            WireError: it was not signed by an aggregator of this federation, or the key does not open it.
        """
        verified = _verified(self.record, registry, federation)
        core = verified.core
        told: Facts = {"federation": core.federation, "signed_by": verified.sender.name}
        if self.key and not verified.recipients:
            raise Tampered("the record is not sealed, and a key was added to it")
        if verified.kind == Kind.ATTESTATION:
            return told | _stated(core, body(verified, Attestation))
        key = disclosed(verified, self.key) if verified.recipients else None
        return told | _received(verified, key, registry)

    def to_text(self, registry: Registry, federation: str) -> str:
        """The file's text; errors as with `facts`."""
        said = {
            "receipt": _FORMAT,
            "says": self.facts(registry, federation),
            "record": base64.b64encode(self.record).decode(),
            "key": base64.b64encode(self.key).decode(),
        }
        return json.dumps(said, indent=1) + "\n"


def check(raw: bytes, registry: Registry, federation: str) -> Facts:
    """What a receipt's file says, once everything in it was found to be what the aggregator signed.

    Raises:
        Malformed: it is no such file.
        WireError: the record was not signed by an aggregator of this federation, or was altered.
        Tampered: the words beside it are not what was signed; names the first that is not.
    """
    said, receipt = _parsed(raw)
    facts = receipt.facts(registry, federation)
    for name in dict.fromkeys((*facts, *said)):
        if (told := said.get(name)) != (signed := facts.get(name)) or type(told) is not type(signed):
            raise Tampered(
                f"the file says {name[:_SHOWN]} = {_word(told)}, but {_word(signed)} was signed: it was altered"
            )
    return facts


def _parsed(raw: bytes) -> tuple[dict[str, object], SignedReceipt]:
    try:
        table = unique_json.loads(raw)
        if not isinstance(table, dict) or type(table["receipt"]) is not int or table["receipt"] != _FORMAT:
            raise ValueError
        record, key = (base64.b64decode(table[name], validate=True) for name in ("record", "key"))
        said = table["says"]
        if not isinstance(said, dict):
            raise ValueError
    except unique_json.SaidTwice as error:
        raise Tampered(f"the file says {_word(error.name)} twice: it was altered") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Malformed(
            "this is no receipt of fledge; `fledge site receipt` and `fledge ctl update receipt` write them"
        ) from None
    if extra := sorted(table.keys() - _PARTS):
        raise Tampered(f"{_word(extra[0])} was added to the file")
    return said, SignedReceipt(record, key)


def _word(value: object) -> str:
    return "nothing" if value is None else repr(value)[:_SHOWN]


def _verified(record: bytes, registry: Registry, federation: str) -> Verified:
    try:
        return verify(record, registry, federation=federation, kinds=_KINDS, limit=limits.MESSAGE)
    except WireError as error:
        if error.reason == "untrusted":
            todo = "it is no receipt of this federation, or this kit's list of members is older than the aggregator"
            raise type(error)(f"{error}: {todo}", error.reason) from None
        if error.reason == "bad_signature":
            raise type(error)(f"{error}: the record was altered after it was signed", error.reason) from None
        if isinstance(error, Malformed):
            raise Malformed(f"the file's record is damaged ({error}); have it written anew", error.reason) from None
        raise


def _received(verified: Verified, key: ContentKey | None, registry: Registry) -> Facts:
    said, core = body(verified, Receipt, key), verified.core
    sites = {entry.participant.box_kid: entry.name for entry in registry.entries}
    told: Facts = {"site": next((sites[kid] for kid in verified.recipients if kid in sites), None)}
    told |= {"update": said.message.hex(), "run": core.run, "epoch": said.epoch, "sequence": said.sequence}
    return told | _outcome(said.outcome, said.reason, core.version)


def _stated(core: Core, said: Attestation) -> Facts:
    told: Facts = {"site": said.site, "update": said.update.hex(), "run": core.run}
    told |= {"epoch": core.epoch, "sequence": core.sequence, "base_version": said.base_version}
    told |= _outcome(said.outcome, said.reason, core.version)
    told |= {"weight": said.weight, "examples": said.examples}
    told |= {"update_sha256": _hex(said.digest), "model_sha256": _hex(said.model)}
    return told | {name: _when(getattr(said, name)) for name in ("arrived", "settled", "issued")}


def _outcome(outcome: Outcome, reason: str, version: int) -> Facts:
    merged = outcome == Outcome.MERGED
    return {"outcome": outcome.value, "reason": reason, "version": version if merged else None}


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


def _when(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms after 1970"
