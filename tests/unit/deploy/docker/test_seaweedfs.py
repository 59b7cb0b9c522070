"""SeaweedFS's command line: what the documentation prints is what the compose file starts."""

from __future__ import annotations

import re

from tests.support.compose import ROOT, services

_OWN_PLACES = {"dir", "s3.port", "s3.config", "filer.localSocket", "s3.localSocket"}
"""What differs from one machine to another: folders, files and the port."""
_OWN_TLS = {"s3.cert.file", "s3.key.file", "s3.cacert.file", "s3.tlsVerifyClientCert"}
"""In the compose file a front door ends TLS."""


def options(line: str) -> dict[str, str]:
    """Every option of a command line of `weed server`, with its value."""
    first, *rest = line.split()
    assert first == "server"
    assert all(word.startswith("-") for word in rest)
    found = {name: value for name, _, value in (word.removeprefix("-").partition("=") for word in rest)}
    assert len(found) == len(rest), "an option stands there twice"
    return found


def test_the_line_in_the_documentation_is_the_compose_files_but_for_places_and_tls() -> None:
    page = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"^weed (server (?:.*\\\n)*.*)$", page, re.MULTILINE)
    documented, composed = options(printed.replace("\\\n", " ")), options(services()["minio"]["command"])
    assert documented.keys() >= _OWN_TLS
    shared = documented.keys() - _OWN_PLACES - _OWN_TLS
    assert {name: documented[name] for name in shared} == {
        name: value for name, value in composed.items() if name not in _OWN_PLACES
    }


def test_volumes_are_small_enough_that_one_is_always_free() -> None:
    composed = options(services()["minio"]["command"])
    assert composed["volume.max"] == "0"  # as many as the disk holds
    assert int(composed["master.volumeSizeLimitMB"]) <= 1024
    assert composed["master.volumePreallocate"] == "false"
