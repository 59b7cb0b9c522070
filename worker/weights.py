"""The former name of `worker.api.weights`, for code that was written or deployed under it."""

from worker.api.weights import *  # noqa: F403 - everything it has
