from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from deploy.provision import pki
from protocol.errors import ConfigError

NOW = datetime.now(UTC)
DAYS = 365
AUTHORITY = pki.new_authority("clinics", NOW)


def client(name: str = "north", *, days: int = DAYS, now: datetime = NOW) -> tuple[bytes, bytes]:
    key = pki.new_key()
    return pki.issue_client(AUTHORITY, name, pki.public_key(key), days=days, now=now), key


def server(*hosts: str) -> tuple[bytes, bytes]:
    key = pki.new_key()
    made = pki.issue_server(AUTHORITY, "broker.server", pki.public_key(key), hosts, days=DAYS, now=NOW)
    return made, key


def context(
    side: int, pair: tuple[bytes, bytes], folder: Path, authority: bytes = AUTHORITY.certificate
) -> ssl.SSLContext:
    made = ssl.SSLContext(side)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_verify_locations(cadata=authority.decode())
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    if side == ssl.PROTOCOL_TLS_SERVER:
        made.verify_mode = ssl.CERT_REQUIRED
    for name, data in zip(("cert.pem", "key.pem"), pair, strict=True):
        (folder / name).write_bytes(data)
    made.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return made


def shake(ours: ssl.SSLContext, theirs: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """Both ends of a handshake through memory; the server's end afterwards."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = ours.wrap_bio(to_client, to_server, server_hostname=host)
    right = theirs.wrap_bio(to_server, to_client, server_side=True)
    waiting = [left, right]
    for _ in range(8):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
        if not waiting:
            return right
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("host", ["hub.example", "127.0.0.1", "::1", "rabbitmq"])
def test_servers_and_participants_meet_over_tls_1_3(tmp_path: Path, host: str) -> None:
    (tmp_path / "s").mkdir()
    theirs = context(ssl.PROTOCOL_TLS_SERVER, server("hub.example", "127.0.0.1", "::1", "rabbitmq"), tmp_path / "s")
    end = shake(context(ssl.PROTOCOL_TLS_CLIENT, client(), tmp_path), theirs, host)
    assert end.version() == "TLSv1.3"
    seen = end.getpeercert()
    assert seen is not None
    assert seen["subject"] == ((("commonName", "north"),),)


def test_a_server_of_another_name_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    theirs = context(ssl.PROTOCOL_TLS_SERVER, server("hub.example"), tmp_path / "s")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(context(ssl.PROTOCOL_TLS_CLIENT, client(), tmp_path), theirs, "other.example")


def test_a_participant_cannot_pose_as_a_server_nor_a_server_as_a_participant(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    theirs = context(ssl.PROTOCOL_TLS_SERVER, client(), tmp_path / "s")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)purpose"):
        shake(context(ssl.PROTOCOL_TLS_CLIENT, client(), tmp_path), theirs, "north")
    theirs = context(ssl.PROTOCOL_TLS_SERVER, server("hub.example"), tmp_path / "s")
    with pytest.raises(ssl.SSLError, match=r"(?i)verify failed"):
        shake(context(ssl.PROTOCOL_TLS_CLIENT, server("hub.example"), tmp_path), theirs, "hub.example")


def test_another_federations_certificates_are_not_believed(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    other = pki.new_authority("clinics", NOW)
    theirs = context(ssl.PROTOCOL_TLS_SERVER, server("hub.example"), tmp_path / "s", other.certificate)
    with pytest.raises(ssl.SSLError, match=r"(?i)verify failed"):
        shake(context(ssl.PROTOCOL_TLS_CLIENT, client(), tmp_path), theirs, "hub.example")


def test_a_participants_certificate_issues_nothing() -> None:
    held = x509.load_pem_x509_certificate(client()[0]).extensions
    assert not held.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not held.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_a_renewed_certificate_is_for_the_same_key_name_and_hosts() -> None:
    old, key = server("hub.example", "127.0.0.1")
    later = NOW + timedelta(days=300)
    new = pki.renew(AUTHORITY, old, days=DAYS, now=later)
    assert pki.public_key(new) == pki.public_key(old) == pki.public_key(key)
    assert pki.common_name(new) == "broker.server"
    assert pki.covers(new, ["HUB.example", "127.0.0.1"])
    assert not pki.covers(new, ["hub.example", "::1"])
    assert pki.expires(new) - pki.expires(old) == timedelta(days=300)
    serials = {x509.load_pem_x509_certificate(pem).serial_number for pem in (old, new)}
    assert len(serials) == 2


def test_a_clock_that_is_ten_minutes_slow_or_fast_changes_nothing() -> None:
    made, _ = client()
    pki.check_dates(made, NOW - timedelta(minutes=10))
    pki.check_dates(made, NOW + timedelta(minutes=10))


@pytest.mark.parametrize(
    ("away", "says"),
    [
        (timedelta(hours=-2), "but this machine's clock says .* set the clock"),
        (timedelta(days=DAYS, minutes=1), "if the clock is right, ask for: fledge provision --renew north"),
    ],
)
def test_a_certificate_that_does_not_hold_now_says_which_clock_to_look_at(away: timedelta, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pki.check_dates(client()[0], NOW + away)


def test_a_signing_request_proves_its_key() -> None:
    key = pki.new_key()
    request = pki.signing_request("north", key)
    assert pki.requested_key(request, "north") == pki.public_key(key)
    with pytest.raises(ConfigError, match="not one that fledge made for south"):
        pki.requested_key(request, "south")
    with pytest.raises(ConfigError, match="cannot be read"):
        pki.requested_key(b"nonsense", "north")


def test_what_is_no_certificate_or_key_is_refused() -> None:
    for wrong in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"x" * 100_000):
        with pytest.raises(ConfigError, match="cannot be read"):
            pki.public_key(wrong)


def test_the_authoritys_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(AUTHORITY)
