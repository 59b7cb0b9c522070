"""Trainers for what sites already have: torch, scikit-learn and numpy, MONAI bundles, Clara MMARs, MONAI's ClientAlgo.

Their names are for training code and for `trainer = "module:factory"` in `worker.toml`; each module loads the library
it is named after.
"""
