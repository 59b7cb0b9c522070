"""The former name of `worker.api.fingerprint`, for code that was written or deployed under it."""

from worker.api.fingerprint import *  # noqa: F403 - everything it has
