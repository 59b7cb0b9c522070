"""Bad input, as bytes: every way in which a message or a blob can be wrong, and the word that has to say so."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import numpy as np

from protocol import limits
from protocol.blob import Manifest
from protocol.codec import encode
from protocol.envelope import _FRAME, MAGIC, PURPOSE, Sealer
from protocol.keys import Identity, Role
from protocol.messages import Kind, Named, Outcome
from protocol.spec import ModelSpec, TensorKind, TensorSpec
from tests.e2e.centre import STALE_LIMIT, Centre, small_delta
from tests.support.federation import FEDERATION, GOOD, RUN, SMALL, payload

_SIGNATURE = 64
ATTACKER = "site-1"
VICTIM = "site-2"
REVOKED = "site-5"


@dataclass(frozen=True, slots=True)
class Attack:
    """What arrives in the attacker's queue, and the reason the aggregator has to give."""

    name: str
    make: Callable[[Centre], bytes]
    reason: str
    outcome: Outcome = Outcome.REJECTED


def _resigned(signer: Identity, packed: bytes, kind: int = int(Kind.UPDATE), kid: bytes | None = None) -> bytes:
    """A frame around any header, with a signature that holds."""
    frame = _FRAME.pack(MAGIC, kind, kid or signer.kid, len(packed)) + packed
    return frame + signer.sign.sign(PURPOSE + frame).signature


def _header(raw: bytes) -> bytes:
    return raw[_FRAME.size : -_SIGNATURE]


def _changed(raw: bytes, **fields: Any) -> bytes:
    """An envelope's header with other fields."""
    header = msgpack.unpackb(_header(raw), use_list=True)
    return msgpack.packb(header | fields, use_bin_type=True)


def _with_core(raw: bytes, **fields: Any) -> bytes:
    core = msgpack.unpackb(msgpack.unpackb(_header(raw))["core"])
    return _changed(raw, core=msgpack.packb(core | fields, use_bin_type=True))


def _flip(raw: bytes, position: int) -> bytes:
    changed = bytearray(raw)
    changed[position] ^= 1
    return bytes(changed)


def _good(centre: Centre, site: str = ATTACKER, **changes: Any) -> bytes:
    return centre.sites[site].update(small_delta(centre.spec), base=centre.service.rules.runs[RUN].version, **changes)


def _signer(centre: Centre, site: str = ATTACKER) -> Identity:
    return centre.federation.members[site]


def _stranger(centre: Centre) -> bytes:
    return _good(centre, signer=Identity.generate(ATTACKER, Role.SITE))


def _forged(centre: Centre) -> bytes:
    raw = _good(centre)
    stranger = Identity.generate(ATTACKER, Role.SITE)
    return raw[:-_SIGNATURE] + stranger.sign.sign(PURPOSE + raw[:-_SIGNATURE]).signature


def _re_addressed(centre: Centre) -> bytes:
    """Somebody on the way puts himself among the recipients."""
    raw = _good(centre)
    wrap = msgpack.unpackb(_header(raw))["wraps"][0]
    packed = _changed(raw, to=[_signer(centre, VICTIM).box_kid], wraps=[wrap])
    frame = _FRAME.pack(MAGIC, int(Kind.UPDATE), _signer(centre).kid, len(packed)) + packed
    return frame + raw[-_SIGNATURE:]


def _sealed_for_another(centre: Centre) -> bytes:
    """The sender seals it for another site, not for the aggregator."""
    sealer = _sealer(centre, length=0)
    return sealer.finish(encode(GOOD), [_signer(centre, VICTIM).public])


def _re_signed(centre: Centre) -> bytes:
    """Another site's update under the attacker's signature; the core still names the victim."""
    return _resigned(_signer(centre), _header(_good(centre, VICTIM)))


def _re_signed_with_own_core(centre: Centre) -> bytes:
    """The same, with a core that names the attacker: the wrapped key belongs to another core."""
    return _resigned(_signer(centre), _with_core(_good(centre, VICTIM), sender=_signer(centre).kid))


def _wrong_federation(centre: Centre) -> bytes:
    return _resigned(_signer(centre), _with_core(_good(centre), federation="another"))


def _newer(centre: Centre) -> bytes:
    return _resigned(_signer(centre), _with_core(_good(centre), v=2))


def _sealer(centre: Centre, *, kind: Kind = Kind.UPDATE, signer: Identity | None = None, length: int = 0) -> Sealer:
    site = centre.sites[ATTACKER]
    site.sequence += 1
    return Sealer(
        signer or _signer(centre),
        kind,
        federation=FEDERATION,
        message_id=os.urandom(16),
        run=RUN,
        sequence=site.sequence,
        spec=centre.spec.digest,
        length=length,
    )


def _wrong_kind(centre: Centre) -> bytes:
    return _sealer(centre, kind=Kind.VERSION).finish(b"", [centre.federation.aggregator.public])


def _wrong_role(centre: Centre) -> bytes:
    sealer = _sealer(centre, signer=centre.federation.operator)
    return sealer.finish(encode(GOOD), [centre.federation.aggregator.public])


def _million_elements(centre: Centre) -> bytes:
    """A header that says it is an array of 10^6 elements."""
    return _resigned(_signer(centre), b"\xdd" + (10**6).to_bytes(4, "big") + b"\xc0" * 200_000)


def _million_recipients(centre: Centre) -> bytes:
    """A header in which only one list says so."""
    packed = msgpack.packb({"core": b"", "wraps": [], "chunks": [], "digest": b"", "body": b""})
    packed = b"\x86" + packed[1:] + b"\xa2to\xdd" + (10**6).to_bytes(4, "big") + b"\xc0" * 200_000
    return _resigned(_signer(centre), packed)


def _nested(centre: Centre) -> bytes:
    return _resigned(_signer(centre), b"\x91" * 200_000 + b"\xc0")


def _duplicate_keys(centre: Centre) -> bytes:
    header = _header(_good(centre))
    return _resigned(_signer(centre), bytes([header[0] + 1]) + header[1:] + b"\xa4body\xc4\x00")


def _declared(length: int, chunks: int) -> Callable[[Centre], bytes]:
    """A blob of which only the size exists."""

    def make(centre: Centre) -> bytes:
        sealer = _sealer(centre, length=length)
        names = tuple(os.urandom(32) for _ in range(chunks))
        manifest = Manifest(length=length, stream=sealer.core.stream, chunks=names, digest=os.urandom(32))
        return sealer.finish(encode(GOOD), [centre.federation.aggregator.public], manifest)

    return make


def _body(**fields: Any) -> Callable[[Centre], bytes]:
    """An update whose signed body says something impossible."""

    def make(centre: Centre) -> bytes:
        plain = msgpack.unpackb(encode(GOOD)) | fields
        sealer = _sealer(centre)
        return sealer.finish(msgpack.packb(plain, use_bin_type=True), [centre.federation.aggregator.public])

    return make


TEN_GB = 10 * 10**9
TEN_GB_CHUNKS = -(-TEN_GB // (limits.RECORD * limits.RECORDS_PER_CHUNK))

LETTERS = [
    Attack("nothing at all", lambda c: b"", "bad_frame"),
    Attack("noise", lambda c: os.urandom(1000), "bad_frame"),
    Attack("a stranger's key", _stranger, "untrusted"),
    Attack("a forged signature", _forged, "bad_signature"),
    Attack("a flipped bit in the header", lambda c: _flip(_good(c), 100), "bad_signature"),
    Attack("a flipped bit in the signature", lambda c: _flip(_good(c), -1), "bad_signature"),
    Attack("a flipped bit in the key id", lambda c: _flip(_good(c), 6), "untrusted"),
    Attack("a flipped bit in the kind", lambda c: _flip(_good(c), 5), "bad_signature"),
    Attack("a flipped bit in the length", lambda c: _flip(_good(c), 25), "bad_frame"),
    Attack("a truncated message", lambda c: _good(c)[:-1], "bad_frame"),
    Attack("half a message", lambda c: (raw := _good(c))[: len(raw) // 2], "bad_frame"),
    Attack("a trailing byte", lambda c: _good(c) + b"\0", "bad_frame"),
    Attack("re-addressed on the way", _re_addressed, "bad_signature"),
    Attack("sealed for another site", _sealed_for_another, "not_for_us"),
    Attack("re-signed by another site", _re_signed, "wrong_context"),
    Attack("re-signed with the attacker's core", _re_signed_with_own_core, "wrong_wrap"),
    Attack("another federation's message", _wrong_federation, "wrong_federation"),
    Attack("a newer wire version", _newer, "upgrade_needed"),
    Attack("another site's message", lambda c: _good(c, VICTIM), "wrong_site"),
    Attack("a kind that only the aggregator signs", _wrong_kind, "wrong_kind"),
    Attack("an update signed by an operator", _wrong_role, "wrong_role"),
    Attack("a revoked key", lambda c: _good(c, REVOKED), "revoked"),
    Attack("a header of a million elements", _million_elements, "malformed"),
    Attack("a million recipients", _million_recipients, "malformed"),
    Attack("a header nested without end", _nested, "malformed"),
    Attack("a key that appears twice", _duplicate_keys, "malformed"),
    Attack("ten declared gigabytes in one chunk", _declared(TEN_GB, 1), "truncated"),
    Attack("more than any blob may have", _declared(10**14, 2048), "too_large"),
    Attack("training seconds that are not a number", _body(seconds=float("nan")), "malformed"),
    Attack("no examples", _body(examples=0), "malformed"),
    Attack("an unknown field", _body(surprise=1), "malformed"),
    Attack("no privacy filter named", _body(filters=[]), "malformed"),
]
"""What is refused before it reaches the journal: the original bytes become a dead letter with the reason."""


def _delta(**values: Any) -> Callable[[Centre], bytes]:
    def make(centre: Centre) -> bytes:
        delta = small_delta(centre.spec)
        for name, value in values.items():
            delta[name].flat[-1] = value
        return centre.sites[ATTACKER].update(delta, base=centre.service.rules.runs[RUN].version)

    return make


def _other_header(centre: Centre) -> bytes:
    """The right length, another name inside the blob's own header."""
    data = payload(centre.spec, small_delta(centre.spec), update=True).replace(b"bias", b"bios", 1)
    return _blob(centre, data)


def _million_names(centre: Centre) -> bytes:
    """The declared length is the run's; the blob's own header says that it alone has a million bytes and more."""
    data = bytearray(payload(centre.spec, {}, update=True))
    data[:8] = (48 * 10**6).to_bytes(8, "little")
    return _blob(centre, bytes(data))


def _blob(centre: Centre, data: bytes) -> bytes:
    return centre.sites[ATTACKER].update(data, base=centre.service.rules.runs[RUN].version)


def _other_spec(*tensors: TensorSpec) -> Callable[[Centre], bytes]:
    spec = ModelSpec(tensors)

    def make(centre: Centre) -> bytes:
        return centre.sites[ATTACKER].update(small_delta(spec), spec=spec, base=centre.service.rules.runs[RUN].version)

    return make


def _transposed() -> tuple[TensorSpec, ...]:
    first, *others = SMALL.tensors
    return (replace(first, shape=first.shape[::-1]), *others)


def _short(centre: Centre) -> bytes:
    data = payload(centre.spec, small_delta(centre.spec), update=True)
    return _blob(centre, data[:-4])


def _spliced(centre: Centre) -> bytes:
    """The manifest names a chunk of an earlier update of the same site."""
    earlier = msgpack.unpackb(_header(_good(centre)))["chunks"]
    return _resigned(_signer(centre), _changed(_good(centre), chunks=earlier))


def _wrong_hash(centre: Centre) -> bytes:
    return _resigned(_signer(centre), _changed(_good(centre), digest=os.urandom(32)))


def _from_base(offset: int) -> Callable[[Centre], bytes]:
    def make(centre: Centre) -> bytes:
        return centre.sites[ATTACKER].update(
            small_delta(centre.spec), base=centre.service.rules.runs[RUN].version + offset
        )

    return make


def _jumped(centre: Centre) -> bytes:
    site = centre.sites[ATTACKER]
    before, site.sequence = site.sequence, site.sequence + limits.SEQUENCE_WINDOW + 1
    raw = _good(centre)
    site.sequence = before
    return raw


REJECTED = [
    Attack("not a number among the values", _delta(weight=np.nan), "not_finite"),
    Attack("infinity among the values", _delta(bias=np.inf), "not_finite"),
    Attack("infinity in a running statistic", _delta(running_mean=-np.inf), "not_finite"),
    Attack("a norm beyond all training", _delta(weight=3e30), "too_large_norm"),
    Attack("another header in the blob", _other_header, "wrong_header"),
    Attack("a blob header of millions of bytes", _million_names, "wrong_header"),
    Attack("a tensor of another shape", _other_spec(*_transposed()), "wrong_spec"),
    Attack(
        "a tensor too many",
        _other_spec(*SMALL.tensors, TensorSpec(name="more", shape=(2,), dtype="F32", kind=TensorKind.PARAMETER)),
        "wrong_spec",
    ),
    Attack("a few bytes short", _short, "wrong_length"),
    Attack("ten declared gigabytes", _declared(TEN_GB, TEN_GB_CHUNKS), "wrong_length"),
    Attack("another run", lambda c: _good(c, run="another-run"), "wrong_run"),
    Attack("an unknown encoding", lambda c: _good(c, encoding=Named(name="int8", parameters={})), "unknown_encoding"),
    Attack("a tensor nobody knows", lambda c: _good(c, absent=("nobody",)), "unknown_tensor"),
    Attack("from the future", _from_base(1), "future_base"),
    Attack("from the far past", _from_base(-STALE_LIMIT - 1), "too_stale"),
    Attack("a chunk of another message", _spliced, "tampered"),
    Attack("another hash of the whole", _wrong_hash, "tampered"),
    Attack("a sequence far ahead", _jumped, "sequence_gap", Outcome.SEQUENCE_REUSED),
]
"""What is journalled (or at least verified) and then refused: the site gets a signed receipt with the reason."""
