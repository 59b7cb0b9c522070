"""Libraries without their symbol tables do what they did."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.docker.strip import strip


def test_a_library_works_as_before_and_is_shorter(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("yaml._yaml")
    assert spec is not None
    assert spec.origin is not None
    library = tmp_path / Path(spec.origin).name
    shutil.copy(spec.origin, library)
    gone = strip(library)
    assert gone > 100_000
    assert library.stat().st_size == Path(spec.origin).stat().st_size - gone
    assert strip(library) == 0  # the second time there is nothing left
    code = (
        "import importlib.util as util, sys, yaml\n"
        "spec = util.spec_from_file_location('yaml._yaml', sys.argv[1])\n"
        "made = util.module_from_spec(spec); spec.loader.exec_module(made)\n"
        "print(made.__file__, made.get_version_string())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(library))


def test_what_is_no_library_stays_as_it_is(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF", b"INPUT(libm.so.6)\n"):  # the last as linkers' scripts are
        (tmp_path / "lib.so").write_bytes(content)
        assert strip(tmp_path / "lib.so") == 0
        assert (tmp_path / "lib.so").read_bytes() == content
