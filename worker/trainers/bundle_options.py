"""What a site says of how a MONAI bundle is trained, looked at before anything is made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError

MOMENTUM = ("restart", "keep")
KEEP_LOCAL = (None, "batchnorm")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOptions:
    """The options of `bundle_trainer`, which says what they are; they come from a file, so each is looked at.

    Raises:
        ConfigError: one is of another kind than it has to be, or two contradict each other.
    """

    dataset_dir: str | Path
    overrides: Mapping[str, object] | None = None
    local_epochs: int | None = None
    local_steps: int | None = None
    momentum: str = "restart"
    keep_local: str | None = None
    device: str = ""
    gpus: Sequence[int] = ()
    amp: bool | None = None
    fingerprint: bool = False
    config_file: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        self._check("dataset_dir", isinstance(self.dataset_dir, str | Path), "the path of a folder")
        self._check("overrides", isinstance(self.overrides, Mapping | None), "a table of values by id")
        self._check("momentum", self.momentum in MOMENTUM, '"restart" or "keep"')
        self._check("keep_local", self.keep_local in KEEP_LOCAL, '"batchnorm", or left out')
        known = isinstance(self.device, str) and (not self.device or _DEVICE.fullmatch(self.device))
        self._check("device", bool(known), '"cpu", "cuda" or "cuda:N"')
        listed = isinstance(self.gpus, Sequence) and all(_whole(each, 0) for each in self.gpus)
        self._check("gpus", listed, "a list of the numbers of GPUs")
        self._check("amp", isinstance(self.amp, bool | None), "true or false")
        self._check("fingerprint", isinstance(self.fingerprint, bool), "true or false")
        files = [self.config_file] if isinstance(self.config_file, str) else self.config_file or []
        texts = isinstance(files, Sequence) and all(isinstance(each, str) and each for each in files)
        self._check("config_file", texts, "a file of the bundle, or a list of some")
        if self.local_epochs is not None and self.local_steps is not None:
            raise ConfigError("give local_epochs or local_steps, not both")
        for name, value in (("local_epochs", self.local_epochs), ("local_steps", self.local_steps)):
            self._check(name, value is None or _whole(value, 1), "a positive whole number")

    def _check(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise ConfigError(f"{name} is {repr(getattr(self, name))[:80]}; it has to be {wanted}")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
