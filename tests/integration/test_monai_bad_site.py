"""A site whose data are wrong neither ends nor holds up a run of a MONAI bundle, and joins in once they are right."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aggregator.config import RunConfig, StrategyConfig
from fledge.bootstrap import open_aggregator, open_worker
from fledge.federation import AGGREGATOR_TOML, WORKER_TOML, new_federation
from fledge.runs.code_archive import CODE
from fledge.runs.from_bundle import init_bundle_run
from tests.support import monai_bundles as bundles
from tests.support.monai_marks import MONAI
from worker.storage.incidents import Incidents

pytestmark = MONAI
WAIT_S = 60.0


class Observed:
    """What the aggregator showed, and a way to wait for it."""

    def __init__(self) -> None:
        self.versions: list[list[str]] = []
        """Whose updates each version was made of."""
        self._changed = threading.Condition()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        with self._changed:
            if event == "version":
                self.versions.append(fields["sites"])
            self._changed.notify_all()

    def wait(self, done: Any) -> None:
        """Wait until this holds; it is looked at whenever something is shown."""
        with self._changed:
            assert self._changed.wait_for(done, WAIT_S), self.versions


def test_the_others_go_on_and_the_site_joins_again_when_its_data_are_right(tmp_path: Path) -> None:
    bundle = bundles.brats(tmp_path / "bundle")
    data = {site: bundles.volumes(tmp_path / site, 3, channels=4, classes=5) for site in ("north", "south")}
    federation = tmp_path / "federation"
    new_federation(
        federation,
        name="f",
        sites=list(data),
        broker="memory:bad-site",
        store=(tmp_path / "store").as_uri(),
        trainer="worker.trainers.monai_bundle:bundle_trainer",
        options={site: {"bundle_root": str(bundle), "dataset_dir": str(place)} for site, place in data.items()},
    )
    settings = RunConfig(name="r", strategy=StrategyConfig.model_validate({"name": "fedbuff", "buffer": 1}))
    init_bundle_run(bundle, tmp_path / "run", name="r", settings=settings)
    shutil.rmtree(tmp_path / "run" / CODE)  # both have the bundle installed
    missing, aside = data["north"] / "images" / "case0.nii.gz", tmp_path / "aside.nii.gz"
    missing.rename(aside)
    seen = Observed()
    with ExitStack() as stack:
        aggregator = stack.enter_context(open_aggregator(federation / AGGREGATOR_TOML, tmp_path / "run", observer=seen))
        aggregator.start()
        for site in data:
            stack.enter_context(open_worker(federation / "sites" / site / WORKER_TOML)).start()
        signs = aggregator._parts.responder._signs
        seen.wait(lambda: "north" in signs and signs["north"].event.code == "data")
        case = signs["north"].event.case
        before = len(seen.versions)
        seen.wait(lambda: len(seen.versions) >= before + 2)
        assert {site for sites in seen.versions for site in sites} == {"south"}
        text = Incidents(federation / "sites" / "north" / "state" / "cases").text(case)
        assert f"{missing} cannot be read" in text.splitlines()[2]
        aside.rename(missing)
        seen.wait(lambda: any("north" in sites for sites in seen.versions))
        seen.wait(lambda: signs["north"].event.code == "-")
