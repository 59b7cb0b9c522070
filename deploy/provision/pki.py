"""Certificates for TLS: a federation's own authority, and what it issues to servers and participants.

The authority is not the federation's root: it says who may connect, the root says whose messages count. All keys are
EC P-256, which TLS 1.3 takes everywhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import ConfigError

AUTHORITY_DAYS = 3650
BACKDATED = timedelta(hours=1)
"""How far a certificate reaches back: clocks of machines that just joined are wrong by minutes."""
_PEM_LIMIT = 16 * 1024


def new_key() -> bytes:
    """A fresh private key as PEM, not encrypted."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Who issues a federation's certificates."""

    certificate: bytes
    """PEM; every member has it."""
    key: bytes = field(repr=False)
    """PEM; it never leaves the provisioner."""


def new_authority(federation: str, now: datetime) -> Authority:
    """A self-signed authority that lasts ten years and issues leaves only."""
    secret = new_key()
    key = _private(secret)
    name = _named(f"{federation} TLS CA"[:64])
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
    usage = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        **dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"), False),
        **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
    )
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate=certificate.public_bytes(Encoding.PEM), key=secret)


def issue_client(authority: Authority, name: str, public_key: bytes, *, days: int, now: datetime) -> bytes:
    """The certificate (PEM) by which a participant connects; RabbitMQ takes its common name as the user."""
    alternatives: list[x509.GeneralName] = [x509.DNSName(name)]
    subject = _Subject(name, public_key, alternatives, ExtendedKeyUsageOID.CLIENT_AUTH)
    return _issue(authority, subject, days, now)


def issue_server(
    authority: Authority, name: str, public_key: bytes, hosts: Sequence[str], *, days: int, now: datetime
) -> bytes:
    """The certificate (PEM) of a server that is reached under `hosts` (names or addresses).

    Args:
        name: the common name; only shown. It must not be a participant's.
    """
    alternatives = list(dict.fromkeys(_host(host) for host in hosts))
    subject = _Subject(name, public_key, alternatives, ExtendedKeyUsageOID.SERVER_AUTH)
    return _issue(authority, subject, days, now)


def renew(authority: Authority, certificate: bytes, *, days: int, now: datetime) -> bytes:
    """A certificate (PEM) like an earlier one of this authority, for the same key: it may travel in the clear."""
    old = _read(certificate)
    name = common_name(certificate)
    use = old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    alternatives = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    subject = _Subject(name, _public(old.public_key()), list(alternatives), next(iter(use)))
    return _issue(authority, subject, days, now)


def signing_request(name: str, key: bytes) -> bytes:
    """A certificate signing request (PEM) for a private key (PEM)."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_named(name))
    return request.sign(_private(key), hashes.SHA256()).public_bytes(Encoding.PEM)


def requested_key(request: bytes, name: str) -> bytes:
    """The public key (PEM) that a signing request proves to hold.

    Raises:
        ConfigError: it is not a request for `name` with an EC P-256 key, or its signature does not hold.
    """
    try:
        csr = x509.load_pem_x509_csr(request[:_PEM_LIMIT])
        good = csr.is_signature_valid and csr.subject == _named(name)
        key = csr.public_key()
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the signing request of {name} cannot be read; have it made again: fledge enrol") from error
    if not good or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"the signing request is not one that fledge made for {name}; have it made again")
    return _public(key)


def public_key(pem: bytes) -> bytes:
    """The public key (PEM) of a private key or of a certificate (PEM), to compare the two.

    Raises:
        ConfigError: it is neither.
    """
    if b"CERTIFICATE" in pem[:64]:
        return _public(_read(pem).public_key())
    return _public(_private(pem).public_key())


def common_name(certificate: bytes) -> str:
    """Whom a certificate (PEM) is for."""
    names = _read(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def covers(certificate: bytes, hosts: Sequence[str]) -> bool:
    """Whether a server's certificate (PEM) is good for all these names and addresses."""
    held = _read(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {_host(host) for host in hosts} <= set(held)


def expires(certificate: bytes) -> datetime:
    """When a certificate (PEM) ends."""
    return _read(certificate).not_valid_after_utc


def check_dates(certificate: bytes, now: datetime) -> None:
    """Let pass a certificate (PEM) that holds now, by this machine's clock.

    Raises:
        ConfigError: not yet, or no longer; says which clock to look at or what to ask for.
    """
    found = _read(certificate)
    name = common_name(certificate)
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if now < begin:
        raise ConfigError(
            f"the certificate of {name} holds from {begin:%Y-%m-%d %H:%M} UTC on, but this machine's clock says "
            f"{now:%Y-%m-%d %H:%M} UTC; set the clock, then try again"
        )
    if now >= end:
        raise ConfigError(
            f"the certificate of {name} ended on {end:%Y-%m-%d %H:%M} UTC and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M} UTC; if the clock is right, ask for: fledge provision --renew {name}"
        )


@dataclass(frozen=True, slots=True)
class _Subject:
    """Whom a certificate is for, and as what."""

    name: str
    public: bytes
    alternatives: Sequence[x509.GeneralName]
    use: x509.ObjectIdentifier


def _issue(authority: Authority, subject: _Subject, days: int, now: datetime) -> bytes:
    issuer, key = _read(authority.certificate), _private(authority.key)
    usage = x509.KeyUsage(
        digital_signature=True,
        **dict.fromkeys(("key_cert_sign", "crl_sign", "content_commitment", "key_encipherment"), False),
        **dict.fromkeys(("data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False),
    )
    builder = _builder(_named(subject.name), issuer.subject, _load_public(subject.public), now, days)
    above = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([subject.use]), critical=False)
        .add_extension(x509.SubjectAlternativeName(subject.alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    begin = now.astimezone(UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - BACKDATED)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.lower())


def _read(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem[:_PEM_LIMIT])
    except ValueError as error:
        raise ConfigError("a certificate of this folder cannot be read; take it from the kit again") from error


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem[:_PEM_LIMIT], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("a TLS key of this folder cannot be read; take it from the kit again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("a TLS key of this folder is not of the kind that fledge makes; take it from the kit again")
    return key


def _public(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("a certificate of this folder is not of the kind that fledge makes; take the kit's own")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _load_public(pem: bytes) -> ec.EllipticCurvePublicKey:
    key = load_pem_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("a public key is not of the kind that fledge makes; have it made again: fledge enrol")
    return key
