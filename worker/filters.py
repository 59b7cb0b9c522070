"""The former name of `worker.api.filters`, for code that was written or deployed under it."""

from worker.api.filters import *  # noqa: F403 - everything it has
