"""The command line `fledge`, run as its program runs it, but in this process, whose libraries are loaded already."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from unittest.mock import patch

from fledge.cli import main


def fledge(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a user gets to see, and the exit code; nobody sits at the keyboard."""
    command = ["fledge", *map(str, arguments)]
    surroundings = {"NO_COLOR": "1", "COLUMNS": "200", **environment}
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        warnings.catch_warnings(action="ignore"),  # for the program they are no errors, as they are for tests
        contextlib.chdir(cwd or Path.cwd()),
        Path(os.devnull).open(encoding="utf-8") as nobody,
        patch.dict(os.environ, surroundings),
        patch.multiple(sys, argv=command, path=list(sys.path), stdin=nobody, stdout=out, stderr=err),
        # The program has hooks of its own for these, and here they are pytest's.
        patch.multiple(sys, excepthook=sys.excepthook, unraisablehook=sys.unraisablehook),
        patch.object(threading, "excepthook", threading.excepthook),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
