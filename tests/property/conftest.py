"""Settings for all properties: a busy machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fledge", deadline=None)
settings.load_profile("fledge")
