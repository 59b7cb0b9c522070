"""Takes the symbol tables of debuggers out of shared libraries, which no program reads; binutils may not be there.

    python deploy/docker/strip.py FOLDER

What a program needs of a library lies in its segments. Behind the last one are the sections that only linkers and
debuggers look at, and the table of sections: an eighth of a site's image.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_SEGMENTS = struct.Struct("<Q14xHH")
"""In the header from byte 0x20 on: where the table of segments is, the size of an entry, and how many there are."""


def strip(path: Path) -> int:
    """Shorten one library to its last segment; returns by how many bytes. Anything else is left as it is."""
    with path.open("r+b") as file:
        if file.read(6) != _ELF64_LITTLE:
            return 0
        file.seek(0x20)
        place, size, number = _SEGMENTS.unpack(file.read(_SEGMENTS.size))
        end: int = place + size * number
        file.seek(place)
        for segment in struct.iter_unpack(f"<8xQ16xQ{size - 40}x", file.read(size * number)):
            end = max(end, sum(segment))  # its offset and its length
        before = file.seek(0, 2)
        file.truncate(end)
        file.seek(0x28)
        file.write(bytes(8))  # there is no table of sections any more,
        file.seek(0x3C)
        file.write(bytes(4))  # no section, and so none that holds their names
        return before - end


def main(folder: str) -> None:
    """Strip every library below a folder."""
    for path in Path(folder).rglob("*.so*"):
        if path.is_file() and not path.is_symlink():
            strip(path)


if __name__ == "__main__":
    main(sys.argv[1])
