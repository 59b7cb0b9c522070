"""Clara MMARs: `fledge.trainers.mmar:mmar_trainer` in `worker.toml`."""

from worker.trainers.mmar import mmar_trainer

__all__ = ["mmar_trainer"]
