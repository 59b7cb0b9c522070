"""The same image twice: what would let a model be tested on what it was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.errors import ConfigError
from worker.data.sources import Source, few


@dataclass(slots=True)
class Duplicates:
    """Images by the SHA-256 of their voxels; `drop` leaves out repetitions within one patient."""

    drop: bool = False
    dropped: list[str] = field(default_factory=list)
    _seen: dict[str, Source] = field(default_factory=dict)

    def is_new(self, source: Source, digest: str) -> bool:
        """Whether an image is wanted.

        Raises:
            ConfigError: it is there already, under another patient, or under the same one and `drop` is not set.
        """
        other = self._seen.setdefault(digest, source)
        if other is source:
            return True
        both = few(sorted((other.name, source.name)))
        if other.patient != source.patient:
            raise ConfigError(
                f"{both} have the same voxels but two patients; find out whose image it is, and leave the other out"
            )
        if not self.drop:
            raise ConfigError(f"{both} have the same voxels; leave one out, or say --drop-duplicates")
        self.dropped.append(source.name)
        return False
