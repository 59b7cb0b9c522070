"""A throw-away certificate authority, by the openssl command."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from broker.net.tls import Tls


@dataclass(frozen=True, slots=True)
class Pki:
    """A folder with `NAME.pem` and `NAME.key` of the authorities ca and other, a server, site-a, and a stranger."""

    folder: Path

    def tls(self, client: str = "site-a", *, ca: str = "ca") -> Tls:
        """The files of a client who believes `ca`."""
        return Tls(
            ca=str(self.folder / f"{ca}.pem"),
            cert=str(self.folder / f"{client}.pem"),
            key=str(self.folder / f"{client}.key"),
        )


def make_pki(folder: Path) -> Pki:
    """Make all of them; the stranger calls itself site-a."""
    make_authority(folder, "ca")
    make_authority(folder, "other")
    names = ("broker.example", "store.example")
    make_certificate(folder, "server", authority="ca", usage="serverAuth", names=names)
    make_certificate(folder, "proxy", authority="other", usage="serverAuth")
    make_certificate(folder, "site-a", authority="ca", usage="clientAuth")
    make_certificate(folder, "stranger", authority="other", usage="clientAuth", common_name="site-a")
    return Pki(folder)


def make_authority(folder: Path, name: str) -> None:
    """Write `NAME.pem` and `NAME.key`, a self-signed authority."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
    use = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _openssl(folder, "req", "-x509", *key, "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}", *use)


def make_certificate(
    folder: Path,
    name: str,
    *,
    authority: str,
    usage: str,
    common_name: str | None = None,
    names: Iterable[str] = (),
    key_identifiers: bool = True,
) -> None:
    """Write `NAME.pem` and `NAME.key` for `usage` serverAuth or clientAuth, good for localhost and `names`.

    Without `key_identifiers` it is one that Python refuses from 3.13 on.
    """
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
    _openssl(folder, "req", *key, "-out", f"{name}.csr", "-subj", f"/CN={common_name or name}")
    also = "".join(f",DNS:{each}" for each in names)
    (folder / f"{name}.ext").write_text(
        f"subjectAltName=DNS:localhost,IP:127.0.0.1{also}\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n"
        + ("" if key_identifiers else "subjectKeyIdentifier=none\nauthorityKeyIdentifier=none\n")
    )
    signer = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", "2"]
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem", "-extfile", f"{name}.ext")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
