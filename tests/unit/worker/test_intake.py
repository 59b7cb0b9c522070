from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from protocol import limits
from protocol.blob import HeldChunk
from protocol.envelope import seal
from protocol.errors import TooLarge, Untrusted, WireError, WrongContext
from protocol.keys import Identity, Role
from protocol.messages import Kind, Outcome, Receipt
from protocol.registry import sign_registry
from protocol.topology import record_key
from tests.support.chunks import collected
from tests.support.fake_aggregator import FEDERATION, RUN, Centre, new_id
from worker.domain.events import HeadSeen, VersionSeen
from worker.domain.state import Sealed, UpdateRow
from worker.intake import Reader, read_registry
from worker.pipeline.reseal import unwrap, wrap


@pytest.fixture
def centre() -> Iterator[Centre]:
    made = Centre("")
    yield made
    made.close()


@pytest.fixture
def reader(centre: Centre) -> Reader:
    return Reader(centre.site, FEDERATION, centre.registry)


def receipt(signer: Identity, centre: Centre) -> bytes:
    said = Receipt(message=b"m" * 16, epoch=0, sequence=1, outcome=Outcome.MERGED, reason="ok", highest_epoch=0)
    return seal(
        signer, Kind.RECEIPT, said, [centre.site.public], federation=FEDERATION, message_id=new_id(), run=RUN, version=4
    )


def test_an_announced_version_says_what_the_rules_need(centre: Centre, reader: Reader) -> None:
    raw = centre.version(3, quota=2, evaluate=True)
    seen = reader.announcement(raw, "delivery", 0.0)
    assert isinstance(seen, VersionSeen)
    assert (seen.run, seen.version, seen.updates_per_base, seen.evaluate) == (RUN, 3, 2, True)
    assert (seen.record, seen.digest, seen.delivery) == (raw, hashlib.sha256(raw).digest(), "delivery")


def test_a_version_says_whose_code_trains_it(centre: Centre, reader: Reader) -> None:
    own = reader.announcement(centre.version(3), "delivery", 0.0)
    brought = reader.announcement(centre.version(3, bundle=b"C" * 32), "delivery", 0.0)
    assert isinstance(own, VersionSeen)
    assert isinstance(brought, VersionSeen)
    assert (own.bundle, brought.bundle) == (b"", b"C" * 32)


def test_more_code_than_allowed_is_refused_before_any_of_it_is_fetched(
    centre: Centre, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = centre.store.get(record_key(centre.code(b"a" * 100).hex()), 2**20)
    assert reader.code(raw, RUN).manifest.length == 100
    monkeypatch.setattr(limits, "CODE", 99)
    with pytest.raises(TooLarge):
        reader.code(raw, RUN)
    monkeypatch.undo()
    with pytest.raises(WrongContext, match="not of other"):
        reader.code(raw, "other")


def test_an_announced_head_is_told_with_the_time_it_came(centre: Centre, reader: Reader) -> None:
    seen = reader.announcement(centre.head(centre.version(3), 3), "delivery", 12.5)
    assert isinstance(seen, HeadSeen)
    assert (seen.head.runs[0].version, seen.wall) == (3, 12.5)


def test_a_record_that_is_not_the_one_the_head_names_is_refused(centre: Centre, reader: Reader) -> None:
    raw = centre.version(3)
    assert reader.version(raw, RUN, 3).delivery is None
    with pytest.raises(WrongContext):
        reader.version(raw, RUN, 4)
    with pytest.raises(WrongContext):
        reader.version(raw, "other", 3)


def test_a_version_for_other_sites_is_refused_as_not_for_us(centre: Centre) -> None:
    raw = centre.version(3)
    stranger = Reader(Identity.generate("beta", Role.SITE), FEDERATION, centre.registry)
    with pytest.raises(WireError) as refused:
        stranger.announcement(raw, None, 0.0)
    assert refused.value.reason == "not_for_us"


def test_a_receipt_counts_only_from_the_aggregator(centre: Centre, reader: Reader) -> None:
    raw = receipt(centre.identity, centre)
    seen = reader.receipt(raw, "delivery")
    assert (seen.receipt.outcome, seen.version, seen.raw) == (Outcome.MERGED, 4, raw)
    with pytest.raises(Untrusted) as refused:
        reader.receipt(receipt(centre.site, centre), None)
    assert refused.value.reason == "wrong_role"
    with pytest.raises(WireError):
        reader.receipt(centre.version(0), None)


def test_messages_of_another_federation_are_refused(centre: Centre) -> None:
    elsewhere = Reader(centre.site, "other", centre.registry)
    for raw in (centre.version(0), receipt(centre.identity, centre)):
        with pytest.raises(WrongContext) as refused:
            elsewhere.receipt(raw, None)
        assert refused.value.reason == "wrong_federation"


def test_a_registry_counts_only_from_the_root(centre: Centre) -> None:
    root = bytes(centre.root.sign.verify_key)
    seen = read_registry(centre.registry_record, root, FEDERATION)
    assert seen.registry == centre.registry
    forged = sign_registry(centre.registry, Identity.generate("root", Role.ROOT), FEDERATION, new_id())
    with pytest.raises(Untrusted):
        read_registry(forged, root, FEDERATION)


def test_a_content_key_in_the_journal_opens_for_its_own_site_only(centre: Centre) -> None:
    from protocol.envelope import ContentKey
    from protocol.errors import StateError

    key = ContentKey(b"s" * 32, b"a" * 32)
    wrapped = wrap(key, centre.site)
    assert key.secret not in wrapped
    assert unwrap(wrapped, centre.site) == key
    with pytest.raises(StateError, match="was the key replaced"):
        unwrap(wrapped, Identity.generate("alpha", Role.SITE))


def test_an_update_can_be_sealed_again_only_by_its_own_site(centre: Centre) -> None:
    from worker.pipeline.reseal import reseal

    row = UpdateRow(row=1, id=b"i" * 16, run=RUN, base_version=0, epoch=0, sequence=1, chunks=())
    with pytest.raises(Untrusted):
        reseal(
            row,
            Sealed(envelope=centre.version(0), chunks=(), key=b""),
            Reader(centre.site, FEDERATION, centre.registry),
            (1, 1),
            load=lambda name: HeldChunk(b""),
            sink=collected([]),
        )
