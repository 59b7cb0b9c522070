"""A worker is killed in the middle of a MONAI bundle's epoch: no half epoch, no lost update, the same model."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aggregator.config import StopConfig, StrategyConfig
from tests.e2e.bundle_rig import BundleRig
from tests.e2e.checks import violations
from tests.support import monai_bundles as bundles
from tests.support.rabbit import RabbitNode, RabbitVhost
from tests.support.s3 import S3Server

pytestmark = [pytest.mark.long, pytest.mark.servers]

VERSIONS = 3
"""Of an epoch: ten pictures in batches of four."""
KILLS = (17, 5)
"""At which picture each life ends: in the second training's first half, and in the repeated one's."""
FATAL = """\
import os
import signal
from pathlib import Path


class Fatal:
    '''Kills its process at the picture whose number is next in a list, until the list is empty.'''

    def __init__(self, listed):
        self.listed, self.seen = Path(listed), 0

    def __call__(self, data):
        self.seen += 1
        at, _, rest = self.listed.read_text().partition(" ")
        if at and self.seen == int(at):
            self.listed.write_text(rest)
            os.kill(os.getpid(), signal.SIGKILL)
        return data
"""


def fatal(folder: Path) -> Path:
    """The bundle of films, with a transform that kills."""
    bundle = bundles.films(folder)
    config = (bundle / "configs" / "train.json").read_text()
    flip = '{"_target_": "RandFlipd"'
    kill = '{"_target_": "scripts.fatal.Fatal", "listed": "$@dataset_dir + \'/kills\'"}, '
    assert config.count(flip) == 1
    (bundle / "configs" / "train.json").write_text(config.replace(flip, kill + flip))
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").write_text("")
    (bundle / "scripts" / "fatal.py").write_text(FATAL)
    return bundle


def run(folder: Path, node: RabbitNode, s3: S3Server, kills: tuple[int, ...]) -> tuple[list[Any], list[Any], int]:
    """Versions' digests, what every update says, and how often the worker was killed."""
    data = bundles.pictures(folder / "data")
    (data / "kills").write_text(" ".join(map(str, kills)))
    with (
        closing(RabbitVhost(node)) as vhost,
        BundleRig(
            folder,
            vhost,
            s3,
            bundle=fatal(folder / "bundle"),
            data={"anna": data},
            main=("-m", "tests.e2e.seeded_main"),
            strategy=StrategyConfig.model_validate({"name": "fedavg"}),
            stop=StopConfig(max_versions=VERSIONS),
        ) as rig,
    ):
        rig.start()
        rig.drain(120)
        rig.stop()
        assert violations(rig) == []
        assert (data / "kills").read_text() == ""
        versions = rig.ask("SELECT version, digest FROM versions ORDER BY version")
        updates = rig.ask("SELECT base_version, state, examples FROM updates ORDER BY base_version")
        return versions, updates, len(rig.kills)


def test_a_kill_in_mid_epoch_changes_nothing(tmp_path: Path, rabbit_node: RabbitNode, s3_server: S3Server) -> None:
    undisturbed = run(tmp_path / "undisturbed", rabbit_node, s3_server, ())
    killed = run(tmp_path / "killed", rabbit_node, s3_server, KILLS)
    assert (undisturbed[2], killed[2]) == (0, len(KILLS))
    assert killed[0] == undisturbed[0]
    assert killed[1] == undisturbed[1] == [(version, "merged", 10) for version in range(VERSIONS)]
    assert len({digest for _, digest in killed[0]}) == VERSIONS + 1
