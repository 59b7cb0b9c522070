"""fledge whose worker throws the same dice in every life, so that trainings can be compared bit by bit."""

from __future__ import annotations

from functools import partial

from fledge import bootstrap
from fledge.cli.app import main

if __name__ == "__main__":
    bootstrap.WorkerSettings = partial(bootstrap.WorkerSettings, seed=b"the same in every life")
    main()
