"""The former name of `worker.api.trainer`, for code that was written or deployed under it."""

from worker.api.trainer import *  # noqa: F403 - everything it has
