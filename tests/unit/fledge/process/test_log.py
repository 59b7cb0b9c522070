"""What must never reach a log, however something fails."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fledge.process import log_file
from fledge.process.log_file import LogFile
from protocol.errors import StateError

PROGRAM = """
import structlog
from fledge.process import log
log.configure(json_lines={json_lines})
def train(patient):
    delta = [patient] * 3
    raise RuntimeError("training broke")
try:
    train("Jane " + "Doe")
except RuntimeError:
    structlog.get_logger().exception("training.failed", store="s3://key:hunter2@host/bucket", password="hunter2")
"""


@pytest.mark.parametrize("json_lines", [True, False])
def test_a_traceback_shows_no_values_and_no_secrets(json_lines: bool) -> None:
    program = PROGRAM.format(json_lines=json_lines)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "training broke" in done.stderr
    assert "train" in done.stderr
    assert "Jane Doe" not in done.stderr
    assert "hunter2" not in done.stderr


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    code = """
import os, structlog
from fledge.process import log
reading, writing = os.pipe()
os.close(reading)
log.configure(json_lines=True, file=os.fdopen(writing, "w"))
for number in range(3):
    structlog.get_logger().info("said", number=number)

os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, ""), done.stderr


LOCAL = """
import logging, sys
from pathlib import Path
import structlog
from fledge.process import log
log.configure(also=Path(sys.argv[1]))
log.configure(json_lines={json_lines}, also=Path(sys.argv[1]))
structlog.get_logger().info("training.started", run="digits", password="hunter2")
try:
    raise ValueError("no scan here")
except ValueError:
    structlog.get_logger().exception("training.failed")
logging.getLogger("pika").warning("lost %s", "amqps://me:hunter2@hub.example/v")
structlog.get_logger().debug("event.dropped")
"""


def local(path: Path, *, json_lines: bool = True) -> list[dict[str, Any]]:
    """What is in a local log after a process has written to it."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", LOCAL.format(json_lines=json_lines), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("json_lines", [True, False])
def test_a_local_file_has_everything_but_secrets_and_is_its_owners_alone(tmp_path: Path, json_lines: bool) -> None:
    path = tmp_path / "state" / "worker.log"
    entries = local(path, json_lines=json_lines)
    assert [entry["event"] for entry in entries] == ["training.started", "training.failed", "library.said"]
    assert [entry["line"] for entry in entries] == [1, 2, 3]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry["timestamp"]) for entry in entries)
    assert entries[1]["exception"][0]["exc_value"] == "no scan here"
    assert entries[2]["text"] == "lost amqps://***@hub.example/v"
    assert "hunter2" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_numbers_of_lines_go_on_after_a_restart_and_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    local(path)
    with path.open("a") as file:
        file.write('{"event": "torn')
    path.chmod(0o644)
    kept = LogFile(path, str)
    kept.keep({"event": "worker.started"})
    kept.close()
    lines = path.read_text().splitlines()
    assert json.loads(lines[-1])["line"] == 4
    assert lines[-2] == '{"event": "torn'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_local_files_are_bounded_and_numbered_throughout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "SIZE", 2000)
    path = tmp_path / "worker.log"
    file = LogFile(path, str)
    for number in range(400):
        file.keep({"event": "said", "number": number})
    file.close()
    names = ["worker.4.log", "worker.3.log", "worker.2.log", "worker.1.log", "worker.log"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name).stat().st_size <= 2000 for name in names)
    numbers = [json.loads(line)["line"] for name in names for line in (tmp_path / name).read_text().splitlines()]
    assert numbers == list(range(numbers[0], 401))
    path.write_text("")
    again = LogFile(path, str)
    again.keep({"event": "said"})
    again.close()
    newest = json.loads((tmp_path / "worker.1.log").read_text().splitlines()[-1])["line"]
    assert json.loads(path.read_text())["line"] == newest + 1


def test_a_line_that_would_fill_the_file_is_cut(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "worker.log", str)
    file.keep({"event": 'x"' * 100_000, "text": "é" * 1_000_000})
    file.keep({"event": {1: {2: object()}}})
    file.close()
    lines = (tmp_path / "worker.log").read_text().splitlines()
    assert len(lines[0]) < 64 * 1024
    assert [json.loads(line)["line"] for line in lines] == [1, 2]


def test_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
import structlog
from fledge.process import log
log.configure(json_lines=True, also=Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for number in range(3):
    structlog.get_logger().info("said", number=number)
"""
    path = tmp_path / "worker.log"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('"said"') == 3
    assert path.stat().st_size <= 100


def test_a_file_that_cannot_be_opened_is_an_error_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "worker.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=r"worker\.log"):
        LogFile(tmp_path / "worker.log", str)


EVERYWHERE = """
import asyncio, logging, sys, threading, traceback
from pathlib import Path
import structlog
from broker.net.urls import split_url
from fledge.process import log
from fledge.process.tracebacks import guard_tracebacks

guard_tracebacks()
log.configure(json_lines={json_lines}, also=Path(sys.argv[1]))
password = "hun ter2/MARK@#+"
url = "amqp://me:" + password + "@hub.example/v"
try:
    split_url(url, "broker URL")
except ValueError:
    raise SystemExit("refused as it should be, but not by our error") from None
except Exception:
    pass

class Connection:
    def __repr__(self):
        return "<Connection to " + url + ">"

def fail():
    try:
        raise ValueError("bad URL " + url)
    except ValueError as inner:
        raise RuntimeError("no login as me:" + password, {{"url": url}}) from inner

said = structlog.get_logger()
for name in ("pika.adapters", "urllib3.connectionpool", "minio", "asyncio"):
    try:
        fail()
    except RuntimeError:
        logging.getLogger(name).exception("lost %s", Connection())
        logging.getLogger(name).warning("sent Authorization: Basic %s", "aHVudGVyMi9NQVJL")
try:
    fail()
except RuntimeError as error:
    said.exception("training.failed", error=error, broker=Connection(), more={{"urls": [url, (password,)]}})
thread = threading.Thread(target=fail, name="sender")
thread.start()
thread.join()

async def late():
    asyncio.get_running_loop().create_task(forgotten())
    await asyncio.sleep(0)
async def forgotten():
    fail()
asyncio.run(late())

class Finalized:
    def __del__(self):
        fail()
Finalized()
fail()
"""


@pytest.mark.parametrize("json_lines", [True, False])
def test_no_log_and_no_traceback_of_a_process_shows_a_login(tmp_path: Path, json_lines: bool) -> None:
    path = tmp_path / "worker.log"
    program = [sys.executable, "-c", EVERYWHERE.format(json_lines=json_lines), str(path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    shown = [line for line in done.stderr.splitlines() if 'password = "' not in line]
    for text in ("\n".join(shown), done.stdout, path.read_text()):
        assert "MARK" not in text
        assert "aHVudGVyMi9NQVJL" not in text
    for told in ("pika.adapters", "minio", "training.failed", "in thread sender: ", "Task exception", "ignored: "):
        assert told in done.stderr, told
    assert done.stderr.count("no login as me:***") >= 8
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["event"] for entry in entries].count("library.said") == 9
