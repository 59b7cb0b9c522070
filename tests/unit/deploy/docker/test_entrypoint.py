"""What the images start, and what they ask for health: shell scripts around a program that stands for fledge."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.compose import DOCKER
from tests.support.waiting import eventually

PROGRAM = """#!/bin/sh
trap 'echo stopped >>started; exit 0' TERM
echo "$@" >>started
[ -z "${ENDS:-}" ] || exit "$ENDS"
sleep 60 & wait
"""


class Container:
    """The entrypoint in a folder of its own, as process 1 of a container would be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "state").mkdir()
        program = folder / "bin" / "fledge"
        program.parent.mkdir()
        program.write_text(PROGRAM)
        program.chmod(0o755)
        self.environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "FLEDGE_WAITS": str(folder / "waits")}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str, ends: str = "") -> subprocess.Popen[bytes]:
        """Start it with the words of a command; the program ends by itself with the code `ends`, or never."""
        command = ["sh", str(DOCKER / "entrypoint.sh"), *words]
        environment = self.environment | {"ENDS": ends}
        # A group of its own, so that whatever it left can be ended.
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True)
        return self.process

    def started(self) -> list[str]:
        """How the program was called, and whether it was asked to stop."""
        path = self.folder / "started"
        return path.read_text().splitlines() if path.exists() else []

    def healthy(self) -> tuple[bool, str]:
        """What the engine is told."""
        command = ["sh", str(DOCKER / "healthy.sh")]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        return done.returncode == 0, done.stdout

    def says(self, seconds: float) -> None:
        """Leave what a service leaves: until when it counts as healthy."""
        (self.folder / "state" / "healthy").write_text(f"{int(time.time() + seconds)}\n")


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    """An entrypoint; nothing of it is left in the end."""
    made = Container(tmp_path)
    yield made
    if made.process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(made.process.pid, signal.SIGKILL)
        made.process.wait()


@pytest.mark.parametrize("service", ["worker", "aggregator"])
def test_a_signal_reaches_the_service_and_its_exit_code_is_the_containers(container: Container, service: str) -> None:
    for _ in range(20):  # the shell hears of the signal and of the service's end in either order
        (container.folder / "started").unlink(missing_ok=True)
        process = container.start(service, "--kit", ".")
        eventually(lambda: container.started() == [f"{service} --kit ."], "it was started")
        process.terminate()
        assert process.wait(10) == 0
        assert container.started()[-1] == "stopped"


@pytest.mark.parametrize("code", ["1", "75", "137"])
def test_what_the_engine_should_start_again_ends(container: Container, code: str) -> None:
    assert container.start("worker", ends=code).wait(10) == int(code)


@pytest.mark.parametrize("code", ["0", "2", "3"])
def test_what_nobody_should_start_again_waits_unhealthy_and_says_why(container: Container, code: str) -> None:
    process = container.start("aggregator", ends=code)
    eventually(lambda: f"exit code {code}" in container.healthy()[1], "the reason is told")
    container.says(600)  # the one that has taken over works in the same folder
    assert not container.healthy()[0]
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == int(code)
    assert container.started() == ["aggregator"]


def test_another_command_takes_the_place_of_the_shell(container: Container) -> None:
    process = container.start("ctl", "status")
    eventually(lambda: container.started() == ["ctl status"], "it was started")
    process.terminate()
    assert process.wait(10) == 0
    assert container.start("doctor", ends="2").wait(10) == 2


def test_help_is_not_waited_for(container: Container) -> None:
    assert container.start("worker", "--help", ends="0").wait(10) == 0


def test_a_service_is_healthy_until_the_second_it_has_written(container: Container) -> None:
    assert not container.healthy()[0]  # it has written nothing yet
    container.says(60)
    assert container.healthy() == (True, "")
    container.says(-1)
    assert not container.healthy()[0]
    container.says(86_400)  # as after a clock that went a day ahead was set back
    assert not container.healthy()[0]


@pytest.mark.parametrize(
    "said", ["", "\n", "soon\n", "-1\n", "9" * 40 + "\n", "x[$(touch executed)]\n", "1 -o 1\n", "0x7fffffff\n"]
)
def test_what_no_service_of_ours_wrote_makes_nobody_healthy_and_is_not_executed(
    container: Container, said: str
) -> None:
    (container.folder / "state" / "healthy").write_text(said)
    assert not container.healthy()[0]
    assert not (container.folder / "executed").exists()


def test_what_an_earlier_life_left_makes_nobody_healthy(container: Container) -> None:
    container.says(600)
    container.start("worker")
    eventually(lambda: container.started() == ["worker"], "it was started")
    assert not container.healthy()[0]
