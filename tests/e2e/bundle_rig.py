"""A federation of real processes that trains a MONAI bundle which every site has installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aggregator.config import RunConfig
from fledge.federation import new_federation
from fledge.runs.code_archive import CODE
from fledge.runs.init_run import RUN_TOML, render
from tests.e2e.rig import FILTERS, ROOT, RUN, Rig
from tests.support.rabbit import RabbitVhost
from tests.support.s3 import S3Server

TRAINER = "fledge.trainers.monai_bundle:bundle_trainer"


class BundleRig(Rig):
    """The run is made by the command, as whoever brings a bundle makes it."""

    def __init__(
        self,
        directory: Path,
        vhost: RabbitVhost,
        s3: S3Server,
        *,
        bundle: Path,
        data: Mapping[str, Path],
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """`data`: each site's; `options`: of the trainer, at every site; `more`: what a `Rig` takes."""
        self._bundle, self._data, self._options = bundle, data, dict(options or {})
        super().__init__(directory, vhost, s3, sites=tuple(data), **more)

    def _found(self, elements: int, seconds: float, settings: dict[str, Any]) -> None:
        common = {"bundle_root": str(self._bundle), **self._options}
        new_federation(
            self.federation,
            name="hospitals",
            sites=self.sites,
            broker=self._broker,
            store=self._store,
            trainer=TRAINER,
            options={site: {**common, "dataset_dir": str(place)} for site, place in self._data.items()},
            filters=FILTERS,
        )
        command = ["init-run", "--bundle", str(self._bundle), "--name", RUN, "-o", str(self.run_directory)]
        subprocess.run(
            [sys.executable, "-m", "fledge.cli", *command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
        )
        shutil.rmtree(self.run_directory / CODE)  # the sites have it already
        self.settings = RunConfig(**({"name": RUN} | settings))
        (self.run_directory / RUN_TOML).write_text(render(self.settings))
