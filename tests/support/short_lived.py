"""Certificates that end within seconds, which the openssl command cannot make, signed by an authority of its making."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def make_client_certificate(
    folder: Path, name: str, *, authority: str, common_name: str, seconds: float, into: Path | None = None
) -> None:
    """Write `NAME.pem` and `NAME.key` into a folder, replacing older ones one after the other."""
    into = into or folder
    signer = serialization.load_pem_private_key((folder / f"{authority}.key").read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority has another kind of key")
    issuer = x509.load_pem_x509_certificate((folder / f"{authority}.pem").read_bytes()).subject
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(seconds=seconds))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for suffix, content in (("key", secret), ("pem", certificate.public_bytes(pem))):
        (into / f"{name}.new").write_bytes(content)
        os.replace(into / f"{name}.new", into / f"{name}.{suffix}")
