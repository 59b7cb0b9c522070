"""One training end to end: processes, RabbitMQ, S3, nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.checks import tally, violations
from tests.e2e.rig import RUN, Rig
from tests.support.command_line import fledge
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server

pytestmark = pytest.mark.servers


def test_three_hospitals_train_one_model_to_its_end(
    tmp_path: Path, rabbit_broker: RabbitVhost, s3_server: S3Server
) -> None:
    with Rig(tmp_path, rabbit_broker, s3_server, evaluate=True) as rig:
        rig.start()
        rig.wait_version(5)
        rig.finish()
        assert rig.stop() == dict.fromkeys(("aggregator", *rig.sites), 0)
        assert violations(rig) == []
        assert tally(rig).merged >= 2 * 8
        replayed = fledge("replay", "--run", rig.run_directory, cwd=rig.federation)
        assert replayed.returncode == 0
        assert "all the same bytes" in replayed.stdout
        assert fledge("replay", "--run", RUN, "--audit", cwd=rig.federation).returncode == 0
