"""S3 servers that we did not choose, for the contract of all stores: taken where they are found, named where not.

`scripts/s3-servers.sh` gets what can be got; it puts programs where they are looked for here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.ports import await_server, free_ports
from tests.support.s3 import ACCESS_KEY, SECRET_KEY
from tests.support.seaweed import ENDING_WITH_THE_TESTS

FOLDER = Path(os.environ.get("FLEDGE_S3_SERVERS", "/var/tmp/fledge-s3"))
"""Where the script put them; what is on the path counts, too."""
_START_S = 90.0
_SWIFT_KEY = "fledge:admin"  # an account and a user, as its keys are
_NO_SNAPSHOTS = "RadosGW on SQLite reads an object's first bytes and the rest one after the other; on RADOS it does not"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of server: the program that has to be there, and the command by which it serves a folder on a port."""

    name: str
    program: str
    command: Callable[[str, Path, int], Sequence[str]]
    access_key: str = ACCESS_KEY
    torn: str = ""
    """See `tests.support.blobs.Subject`."""


def _juicefs(program: str, folder: Path, port: int) -> Sequence[str]:
    """Its gateway is MinIO's server in front of a file system of its own."""
    meta = f"sqlite3://{folder / 'meta.db'}"
    _run(program, "format", "--no-update", f"--bucket={folder / 'objects'}/", "--storage=file", meta, "fledge")
    cache = f"--cache-dir={folder / 'cache'}"
    login = ("env", f"MINIO_ROOT_USER={ACCESS_KEY}", f"MINIO_ROOT_PASSWORD={SECRET_KEY}", f"HOME={folder}")
    return [*login, program, "gateway", "--multi-buckets", "--no-usage-report", cache, meta, f"127.0.0.1:{port}"]


def _ceph(program: str, folder: Path, port: int) -> Sequence[str]:
    """RadosGW alone, without a cluster: its objects are in SQLite."""
    config = folder / "ceph.conf"
    config.write_text(
        "\n".join(
            [
                "[client.rgw]",
                "rgw_backend_store = dbstore",
                "rgw_config_store = dbstore",
                f"dbstore_db_dir = {folder}",
                f"dbstore_config_uri = file:{folder / 'config.db'}",
                f"rgw_data = {folder}",
                f"run_dir = {folder}",
                f"admin_socket = {folder / 'socket'}",
                f"rgw_frontends = beast endpoint=127.0.0.1:{port}",
                "keyring = /dev/null",
                "",
            ]
        )
    )
    said = ["--no-mon-config", f"--conf={config}", "--name=client.rgw"]
    keys = [f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
    _run(f"{program}-admin", *said, "user", "create", "--uid=fledge", "--display-name=fledge", *keys)
    return [program, "-f", *said]


def _moto(program: str, folder: Path, port: int) -> Sequence[str]:
    """Amazon's S3 as those who test against it imagine it; it believes every key."""
    return [program, "--host=127.0.0.1", f"--port={port}"]


def _swift(program: str, folder: Path, port: int) -> Sequence[str]:
    """OpenStack's Swift and its S3 interface; the program is its environment's Python."""
    script = Path(__file__).with_name("swift_server.py")
    others = map(str, free_ports(3))
    return [program, "-W", "ignore", str(script), str(folder), str(port), _SWIFT_KEY, SECRET_KEY, *others]


KINDS = {
    "juicefs": Kind(name="JuiceFS gateway (MinIO's code)", program="juicefs", command=_juicefs),
    "ceph": Kind(name="Ceph RadosGW", program="radosgw", command=_ceph, torn=_NO_SNAPSHOTS),
    "swift": Kind(name="OpenStack Swift", program="swift-python", command=_swift, access_key=_SWIFT_KEY),
    "moto": Kind(name="moto", program="moto_server", command=_moto),
}
"""Every kind by the word for it in the names of tests."""


def find(kind: Kind) -> str | None:
    """The program, if it is there."""
    return shutil.which(kind.program, path=f"{FOLDER / 'bin'}{os.pathsep}{os.environ['PATH']}")


class OtherStore:
    """One server process on a port and a folder of its own."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        """Start, or skip the test where there is no such server."""
        program = find(kind)
        if program is None:
            pytest.skip(f"{kind.name} is not on this machine; scripts/s3-servers.sh gets it")
        self._kind = kind
        (self.port,) = free_ports(1)
        command = [*ENDING_WITH_THE_TESTS, *kind.command(program, folder, self.port)]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        await_server(self._process, self.port, folder / "log", _START_S)

    def url(self, bucket: str) -> str:
        """The store URL of a bucket, or of a prefix in it."""
        return f"s3://{quote(self._kind.access_key)}:{SECRET_KEY}@127.0.0.1:{self.port}/{bucket}"

    def stop(self) -> None:
        """End the process without asking it."""
        self._process.kill()
        self._process.wait(timeout=30)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} {command[1]}: {(done.stdout + done.stderr)[-2000:]}")
