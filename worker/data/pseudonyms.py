"""Names of cases that say nothing without the key, and that are the same whenever the key is."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.errors import ConfigError
from worker.data.sources import ImageSource, few

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Made from patients and images by HMAC-SHA256; without the key a patient's number cannot be tried out.

    Raises:
        ConfigError: the key has another length.
    """

    key: bytes

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ConfigError(f"a key of patients has {KEY_BYTES} bytes, not {len(self.key)}; is it the right file?")

    @classmethod
    def new(cls) -> Pseudonyms:
        """With a key of its own."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def patient(self, patient: str) -> str:
        """A patient's pseudonym, 13 characters."""
        return f"p{self._digest('patient', patient)[:12]}"

    def case(self, source: ImageSource) -> str:
        """An image's name: its patient's pseudonym and eight characters of its own."""
        return f"{self.patient(source.patient)}-{self._digest('case', source.patient, source.identity)[:8]}"

    def names(self, sources: Sequence[ImageSource]) -> Mapping[str, ImageSource]:
        """Every image by its name.

        Raises:
            ConfigError: two of them would share one.
        """
        named: dict[str, ImageSource] = {}
        for source in sources:
            other = named.setdefault(self.case(source), source)
            if other is not source:
                raise ConfigError(f"{few((other.name, source.name))} are the same image twice; leave one of them out")
        return named

    def _digest(self, *parts: str) -> str:
        # The length before each part: no two lists of parts make the same message.
        raw = [part.encode("utf-8", "surrogatepass") for part in parts]
        message = b"".join(len(part).to_bytes(4, "big") + part for part in raw)
        return hmac.digest(self.key, message, "sha256").hex()
