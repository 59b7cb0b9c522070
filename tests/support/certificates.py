"""A throw-away certificate authority, by the openssl command."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path


def make_authority(folder: Path, name: str) -> None:
    """Write `NAME.pem` and `NAME.key`, a self-signed authority."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
    use = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _openssl(folder, "req", "-x509", *key, "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}", *use)


def make_certificate(
    folder: Path, name: str, *, authority: str, usage: str, common_name: str | None = None, names: Iterable[str] = ()
) -> None:
    """Write `NAME.pem` and `NAME.key` for `usage` serverAuth or clientAuth, good for localhost and `names`."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
    _openssl(folder, "req", *key, "-out", f"{name}.csr", "-subj", f"/CN={common_name or name}")
    also = "".join(f",DNS:{each}" for each in names)
    (folder / f"{name}.ext").write_text(
        f"subjectAltName=DNS:localhost,IP:127.0.0.1{also}\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n"
    )
    signer = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2"]
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem", "-extfile", f"{name}.ext")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
