"""MONAI bundles: `fledge.trainers.monai_bundle:bundle_trainer` in `worker.toml`, or in a run"s own code."""

from worker.trainers.monai_bundle import BundleTrainer, bundle_network, bundle_trainer, site_trainer

__all__ = ["BundleTrainer", "bundle_network", "bundle_trainer", "site_trainer"]
