"""Bundles of 418 and 840 MB: two versions of two sites in real processes, within the memory that is allowed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from aggregator.config import StopConfig, StrategyConfig
from benchmarks.bundle_memory import peak
from benchmarks.pipeline_model import peak_kib
from benchmarks.wide_bundle import write_bundle, write_images
from tests.e2e.bundle_rig import BundleRig
from tests.e2e.checks import violations
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server

pytestmark = [pytest.mark.long, pytest.mark.servers]

SITES, VERSIONS, EPOCHS = ("anna", "bert"), 2, 2
AGGREGATOR = 512 * 2**20
"""Bytes that the aggregator may take above the idle process."""
WAIT_S = 900


@pytest.mark.parametrize("size", [418_000_000, 840_000_000])
def test_two_versions_of_two_sites(
    size: int,
    tmp_path: Path,
    rabbit_broker: RabbitVhost,
    private_s3_server: S3Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = write_bundle(tmp_path / "bundle", size)
    data = {site: write_images(tmp_path / site, seed=index) for index, site in enumerate(SITES)}
    alone = peak("alone", bundle, data["anna"], EPOCHS * VERSIONS)
    with BundleRig(
        tmp_path,
        rabbit_broker,
        private_s3_server,
        bundle=bundle,
        data=data,
        options={"local_epochs": EPOCHS},
        strategy=StrategyConfig.model_validate({"name": "fedavg"}),
        min_sites=len(SITES),
        stop=StopConfig(max_versions=VERSIONS),
    ) as rig:
        rig.aggregator.start()
        rig.wait_version(0, WAIT_S)
        idle = 1024 * peak_kib(rig.aggregator.pid, "VmRSS")
        for worker in rig.workers.values():
            worker.start()
        rig.drain(WAIT_S)
        aggregator = 1024 * peak_kib(rig.aggregator.pid) - idle
        workers = [1024 * peak_kib(worker.pid) - alone["peak"] for worker in rig.workers.values()]
        rig.stop()
        found = violations(rig)
        merged = rig.ask("SELECT base_version, site, state FROM updates ORDER BY base_version, site")
    for folder in (rig.federation, rig.run_directory, private_s3_server.directory):  # gigabytes
        shutil.rmtree(folder)
    model, script, above = (round(each / 2**20) for each in (alone["model"], alone["peak"], aggregator))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{model} MiB: MONAI alone {script} MiB, workers above it {[round(more / 2**20) for more in workers]} "
            f"MiB; aggregator above idle {above} MiB\n"
        )
    assert found == []
    assert merged == [(version, site, "merged") for version in range(VERSIONS) for site in SITES]
    assert max(workers) <= alone["model"]
    assert aggregator < AGGREGATOR
