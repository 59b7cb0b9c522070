"""Receipts as files: what was signed is told, and whatever was altered is named."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.keyfiles import write_identity
from fledge.cli.app import app
from fledge.receipts import SignedReceipt, check
from protocol.errors import FledgeError, Malformed, Tampered, Untrusted, WireError, WrongContext
from protocol.keys import Identity, Role
from protocol.messages import Kind, Outcome
from tests.support.wire import BODIES, FEDERATION, REGISTRY, ROOT, RUN, SITE_A, SITE_B, fixed, make
from worker.domain import writes
from worker.domain.state import Sealed, UpdateRow
from worker.journal.journal import Journal

UPDATE = fixed("update")[:16]
MERGED = replace(BODIES[Kind.RECEIPT], outcome=Outcome.MERGED, reason="ok")


def signed(kind: Kind, **more: Any) -> SignedReceipt:
    record = make(kind, **more).raw
    return SignedReceipt.opened(record, SITE_A, REGISTRY, FEDERATION)


def file(kind: Kind, **more: Any) -> bytes:
    return signed(kind, **more).to_text(REGISTRY, FEDERATION).encode()


def test_a_receipt_tells_whose_update_it_is_and_what_became_of_it() -> None:
    facts = check(file(Kind.RECEIPT, body=MERGED, version=7), REGISTRY, FEDERATION)
    assert facts == {
        "federation": FEDERATION,
        "signed_by": "aggregator",
        "site": "site-a",
        "update": UPDATE.hex(),
        "run": RUN,
        "epoch": 1,
        "sequence": 17,
        "outcome": "merged",
        "reason": "ok",
        "version": 7,
    }
    refused = check(file(Kind.RECEIPT), REGISTRY, FEDERATION)
    assert (refused["outcome"], refused["reason"], refused["version"]) == ("rejected", "not_finite", None)


def test_an_attestation_tells_weight_digests_and_times_too() -> None:
    facts = check(file(Kind.ATTESTATION), REGISTRY, FEDERATION)
    assert (facts["site"], facts["outcome"], facts["version"], facts["weight"]) == ("site-a", "merged", 7, 0.375)
    assert (facts["update_sha256"], facts["model_sha256"]) == (fixed("envelope").hex(), fixed("model").hex())
    assert (facts["arrived"], facts["settled"]) == ("2026-09-21T14:13:20.123+00:00", None)


@pytest.mark.parametrize("kind", [Kind.RECEIPT, Kind.ATTESTATION])
def test_words_that_were_altered_are_named(kind: Kind) -> None:
    honest = json.loads(file(kind))
    for name, value in honest["says"].items():
        for other in ("other", None, 12345, True):
            if other is value:
                continue
            altered = {**honest, "says": {**honest["says"], name: other}}
            with pytest.raises(Tampered, match=f"the file says {name} = .*was altered"):
                check(json.dumps(altered).encode(), REGISTRY, FEDERATION)
        left_out = {key: each for key, each in honest["says"].items() if key != name}
        if value is not None:
            with pytest.raises(Tampered, match=name):
                check(json.dumps({**honest, "says": left_out}).encode(), REGISTRY, FEDERATION)
    with pytest.raises(Tampered, match="praise"):
        check(json.dumps({**honest, "says": {**honest["says"], "praise": "all"}}).encode(), REGISTRY, FEDERATION)


FORGED = {
    '"outcome":': '"outcome": "merged", "outcome":',
    '"outcome": "': '"outc\\u006fme": "merged", "outcome": "',
    '"says"': '"says": {"outcome": "merged"}, "says"',
    '"receipt": 1': '"receipt": 1, "endorsed_by": "the hub"',
    '"record"': '"record": "", "record"',
}
"""What people would read in a file, and a program that takes the last of two would not."""


@pytest.mark.parametrize("honest", FORGED)
@pytest.mark.parametrize("kind", [Kind.RECEIPT, Kind.ATTESTATION])
def test_nothing_stands_in_a_receipt_that_was_not_compared(kind: Kind, honest: str) -> None:
    text = file(kind).decode()
    assert honest in text
    with pytest.raises(Tampered, match=r"twice: it was altered|was added to the file"):
        check(text.replace(honest, FORGED[honest], 1).encode(), REGISTRY, FEDERATION)


def test_a_key_beside_a_record_in_the_clear_was_added() -> None:
    added = {**json.loads(file(Kind.ATTESTATION)), "key": base64.b64encode(bytes(32)).decode()}
    with pytest.raises(Tampered, match="a key was added"):
        check(json.dumps(added).encode(), REGISTRY, FEDERATION)


@given(st.sampled_from([Kind.RECEIPT, Kind.ATTESTATION]), st.data())
@settings(max_examples=60, deadline=None)
def test_no_altered_byte_of_a_record_or_its_key_is_believed(kind: Kind, data: Any) -> None:
    honest = json.loads(file(kind))
    part = data.draw(st.sampled_from(["record", "key"] if honest["key"] else ["record"]))
    raw = bytearray(base64.b64decode(honest[part]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    honest[part] = base64.b64encode(bytes(raw)).decode()
    with pytest.raises(WireError):
        check(json.dumps(honest).encode(), REGISTRY, FEDERATION)


ANYTHING = st.recursive(st.none() | st.text(max_size=20) | st.integers(), lambda each: st.lists(each, max_size=3))
MAIMED = ANYTHING.map(lambda it: json.dumps({"receipt": 1, "says": it, "record": it, "key": it}).encode())


@given(st.binary(max_size=200) | MAIMED)
@settings(max_examples=40, deadline=None)
def test_what_is_no_receipt_is_called_so(raw: bytes) -> None:
    with pytest.raises(WireError):
        check(raw, REGISTRY, FEDERATION)


def test_a_record_that_is_none_is_called_damaged() -> None:
    for record in (b"", b"\0", make(Kind.ATTESTATION).raw[:-1]):
        with pytest.raises(Malformed, match=r"is damaged .*; have it written anew"):
            SignedReceipt(record).facts(REGISTRY, FEDERATION)


def test_receipts_of_others_are_refused_with_the_reason() -> None:
    foreign = make(Kind.ATTESTATION, federation="another").raw
    with pytest.raises(WrongContext, match="another federation"):
        SignedReceipt(foreign).facts(REGISTRY, FEDERATION)
    forger = Identity.generate("aggregator", Role.AGGREGATOR)
    with pytest.raises(Untrusted, match="no receipt of this federation, or this kit's list of members is older"):
        SignedReceipt(make(Kind.ATTESTATION, signer=forger).raw).facts(REGISTRY, FEDERATION)
    with pytest.raises(Untrusted, match="may not sign"):
        SignedReceipt(make(Kind.ATTESTATION, signer=SITE_A).raw).facts(REGISTRY, FEDERATION)
    with pytest.raises(Untrusted, match="revoked"):
        SignedReceipt(make(Kind.ATTESTATION).raw).facts(REGISTRY.revoke("aggregator"), FEDERATION)
    with pytest.raises(WrongContext, match="not sealed for site-b"):
        SignedReceipt.opened(make(Kind.RECEIPT).raw, SITE_B, REGISTRY, FEDERATION)
    with pytest.raises(WrongContext, match="does not belong here"):
        SignedReceipt(make(Kind.HEAD).raw).facts(REGISTRY, FEDERATION)


# ---- the commands


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A site's kit beside whose worker one update was merged and one is on its way."""
    folder = tmp_path / "site-a"
    folder.mkdir(mode=0o700)
    root = bytes(ROOT.sign.verify_key).hex()
    (folder / "worker.toml").write_text(
        f'federation = "{FEDERATION}"\nbroker = "memory:"\nstore = "memory:"\nroot = "{root}"\ntrainer = "a:b"\n'
    )
    write_identity(folder / "site.keys", SITE_A)
    (folder / "registry.bin").write_bytes(make(Kind.REGISTRY).raw)
    journal = Journal(folder / "state" / "worker.db", "site-a", clock=lambda: 1_790_000_000.0)
    rows = [
        UpdateRow(row=n, id=id, run=RUN, base_version=6, epoch=1, sequence=16 + n, chunks=())
        for n, id in ((1, UPDATE), (2, b"2" * 16))
    ]
    sealed = Sealed(envelope=b"envelope", chunks=(), key=b"key")
    raw = make(Kind.RECEIPT, body=MERGED, version=7).raw
    journal.commit([writes.AddUpdate(row=row, sealed=sealed) for row in rows])
    journal.commit([writes.SettleUpdate(row=rows[0], outcome="merged", reason="ok", version=7, receipt=raw)])
    journal.close()
    return folder


def fledge(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*map(str, words)])
    if isinstance(done.exception, FledgeError):
        return 1, str(done.exception)
    return done.exit_code, done.stdout


def test_a_site_lists_its_updates_and_writes_a_receipt_that_anybody_can_check(kit: Path, tmp_path: Path) -> None:
    code, shown = fledge("site", "receipts", "--kit", kit)
    assert (code, len(shown.splitlines())) == (0, 2)
    assert f"{'32' * 8}  2026-09-21T14:13:20+00:00  {RUN} from version 6: on_its_way" in shown
    assert "merged into version 7" in shown
    rows = json.loads(fledge("site", "receipts", "--kit", kit, "--json")[1])
    assert [row["outcome"] for row in rows] == ["on_its_way", "merged"]
    path = tmp_path / "receipt.json"
    code, shown = fledge("site", "receipt", UPDATE.hex()[:8], "--kit", kit, "-o", path)
    assert (code, "merged" in shown, path.stat().st_mode & 0o777) == (0, True, 0o600)
    code, shown = fledge("receipt", "verify", path, "--kit", kit)
    assert (code, "nothing was altered" in shown) == (0, True)
    path.write_text(path.read_text().replace('"merged"', '"rejected"'))
    code, shown = fledge("receipt", "verify", path, "--kit", kit)
    assert (code, "outcome = 'rejected', but 'merged' was signed" in shown) == (1, True)


def test_a_site_compares_the_attested_digest_with_what_it_sealed(kit: Path, tmp_path: Path) -> None:
    def verify(envelope: bytes) -> tuple[int, str]:
        said = replace(BODIES[Kind.ATTESTATION], digest=hashlib.sha256(envelope).digest())
        path = tmp_path / "attested.json"
        path.write_bytes(file(Kind.ATTESTATION, body=said))
        return fledge("receipt", "verify", path, "--kit", kit)

    assert "which this site sealed and sent" in verify(b"envelope")[1]
    code, shown = verify(b"other bytes")
    assert (code, "other bytes (SHA-256" in shown) == (1, True)
    (kit / "state" / "worker.db").unlink()
    code, shown = verify(b"other bytes")
    assert (code, "nothing was altered" in shown, "sealed" in shown) == (0, True, False)


@pytest.mark.parametrize(
    ("update", "words"), [("3232", "there is no receipt of 3232"), ("abcd", "no update begins"), ("3", "four at least")]
)
def test_an_update_without_a_receipt_is_told_apart_from_one_that_is_not_there(
    kit: Path, update: str, words: str
) -> None:
    assert words in fledge("site", "receipt", update, "--kit", kit)[1]


def test_a_site_that_sent_nothing_and_one_where_no_worker_ran_say_so(kit: Path) -> None:
    database = kit / "state" / "worker.db"
    database.unlink()
    Journal(database, "site-a").close()
    assert "has not sent an update yet" in fledge("site", "receipts", "--kit", kit)[1]
    database.unlink()
    assert "no such database" in fledge("site", "receipts", "--kit", kit)[1]
