"""How processes that load data begin."""

from __future__ import annotations

import multiprocessing
import sys


def start_by_forking() -> None:
    """Let them begin as copies of this process on Linux, unless its program has chosen otherwise.

    From Python 3.14 on they begin empty by default, and get what they need as pickles. Lambdas, which MONAI's bundles
    are full of, cannot be pickled, and each process would load torch anew.
    """
    if sys.platform == "linux" and multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("fork")
