"""A real S3 server for tests: `rclone serve s3` on a directory, that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.ports import await_server, free_ports

ACCESS_KEY = "fledge-test-key"
SECRET_KEY = "fledge-test-secret"


class S3Server:
    """One server process on a fixed port and directory; objects are plain files below `directory / bucket`."""

    def __init__(
        self,
        directory: Path,
        log: Path,
        *,
        tls: tuple[Path, Path] | None = None,
        client_ca: Path | None = None,
        port: int | None = None,
        keys: Sequence[tuple[str, str]] = ((ACCESS_KEY, SECRET_KEY),),
    ) -> None:
        """Start; `tls` holds the files of a certificate and its key, `client_ca` whose certificates clients need."""
        self.directory = directory
        self.port = port or free_ports(1)[0]
        self.keys = list(keys)
        """Access and secret keys, each of which sees everything; a restart takes notice of changes."""
        self._log = log
        self._tls = tls
        self._client_ca = client_ca
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def url(self, bucket: str, *, port: int | None = None, options: str = "") -> str:
        """The store URL of one bucket, optionally by way of a proxy's port."""
        scheme = "s3" if self._tls is None else "s3s"
        return f"{scheme}://{ACCESS_KEY}:{SECRET_KEY}@127.0.0.1:{port or self.port}/{bucket}{options}"

    def start(self) -> None:
        """Start and wait until the port answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _rclone(),
                    "serve",
                    "s3",
                    f"--addr=127.0.0.1:{self.port}",
                    *(f"--auth-key={access},{secret}" for access, secret in self.keys),
                    "--etag-hash=",  # HEAD would otherwise hash the whole object
                    "--config=",
                    *([] if self._tls is None else [f"--cert={self._tls[0]}", f"--key={self._tls[1]}"]),
                    *([] if self._client_ca is None else [f"--client-ca={self._client_ca}"]),
                    str(self.directory),
                ],
                stdout=log,
                stderr=log,
            )
        await_server(self._process, self.port, self._log)

    def kill(self) -> None:
        """End the process as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process in good order."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill and start again on the same port and directory."""
        self.kill()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)
            self._process = None


def _rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")
    if found is None:
        raise RuntimeError("rclone is not installed: run scripts/setup.sh")
    return found
