"""Adapters from training libraries to `worker.api.trainer.Trainer`, and the model a run begins with.

Each library has a module of its own, imported only by those who train with it.
"""

from __future__ import annotations
