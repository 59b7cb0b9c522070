"""The systemd units in kits: what brings a service back, and what it may do to its machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fledge.cli.app import RESTART, exit_code
from protocol.errors import ConfigError, Fenced, StateError
from protocol.keys import Role
from tests.support.units import SITE, UNITS, analyze, settings, unit

BOTH = pytest.mark.parametrize("role", UNITS)
MOST_EXPOSED = 3.0
"""Of 10, by `systemd-analyze security`."""


@pytest.fixture
def file(role: Role, tmp_path: Path) -> Path:
    path = tmp_path / UNITS[role]
    path.write_text(unit(role))
    return path


@BOTH
def test_systemd_finds_nothing_wrong_with_a_unit(file: Path) -> None:
    done = analyze("verify", "--man=no", file)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@BOTH
def test_a_service_is_hardly_exposed(file: Path) -> None:
    report = analyze("security", "--offline=true", file).stdout
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", report)
    assert found is not None, report
    assert float(found[1]) <= MOST_EXPOSED, report


@BOTH
def test_a_service_writes_into_its_state_and_nowhere_else(role: Role) -> None:
    said = settings(unit(role))
    kit = f"fledge/{SITE if role is Role.SITE else 'aggregator'}"
    assert said["WorkingDirectory"] == [f"/var/lib/{kit}"]
    assert (said["StateDirectory"], said["StateDirectoryMode"]) == ([f"{kit}/state"], ["0700"])
    assert (said["ProtectSystem"], said["PrivateTmp"]) == (["strict"], ["yes"])
    assert "ReadWritePaths" not in said


@BOTH
def test_a_service_has_no_right_of_roots_and_can_gain_none(role: Role) -> None:
    said = settings(unit(role))
    assert (said["User"], said["CapabilityBoundingSet"], said["NoNewPrivileges"]) == (["fledge"], [""], ["yes"])
    assert not {"AmbientCapabilities", "PermissionsStartOnly"} & said.keys()
    assert not any(line.startswith(("+", "!")) for key in said if key.startswith("Exec") for line in said[key])


@BOTH
def test_a_service_comes_back_after_a_crash_and_a_reboot_but_not_where_trying_again_is_no_use(role: Role) -> None:
    said = settings(unit(role))
    hopeless = {exit_code(ConfigError("wrong"))} | ({exit_code(Fenced("taken"))} if role is Role.AGGREGATOR else set())
    # On failure: after signals and exit codes other than 0, which an ordered stop leaves and `site shutdown` too.
    assert said["Restart"] == ["on-failure"]
    assert {int(code) for code in said["RestartPreventExitStatus"][0].split()} == hopeless
    assert not {RESTART, exit_code(StateError("disk"))} & hopeless
    # Without a limit: a hospital whose network was away for a night is there in the morning.
    assert said["StartLimitIntervalSec"] == ["0"]
    assert said["WantedBy"] == ["multi-user.target"]
