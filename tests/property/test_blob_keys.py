"""No text whatever, used as a key, a prefix or a head's name, reaches outside a store's directory."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.blobs.base import check_key, is_key
from broker.blobs.directory import FileBlobs
from protocol.errors import ConfigError, Missing, StoreError
from protocol.topology import model_chunk, record_key, state_chunk, update_chunk

HEX = "0123456789abcdef" * 4
NASTY = st.sampled_from(
    ["..", ".", "/", "//", "\\", "\0", "\n", "%2e%2e", "~", "heads", "up", "models", ".unfinished", HEX, "é", "A", "-"]
)
TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(st.one_of(NASTY, st.text(max_size=5)), max_size=6).map("/".join),
    st.lists(NASTY, max_size=6).map("".join),
    st.lists(NASTY, max_size=4).map(lambda parts: "/".join([*parts, HEX])),
)
SITES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True).filter(lambda site: site != "aggregator")


@pytest.fixture(scope="module")
def nest() -> Iterator[Path]:
    """A directory with a file beside the place where stores are made."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "outside").write_bytes(b"untouched")
        yield Path(folder)


def outside(nest: Path) -> dict[str, bytes]:
    """Everything in the nest that is not the store's."""
    return {
        str(path.relative_to(nest)): path.read_bytes() if path.is_file() else b""
        for path in nest.rglob("*")
        if nest / "store" not in [path, *path.parents]
    }


@given(text=TEXTS)
@example("../outside")
@example("../" + HEX)
@example("models/../../" + HEX)
@example("models/" + HEX + "\n")
@example("/" + HEX)
def test_no_text_escapes_the_directory(nest: Path, text: str) -> None:
    store = FileBlobs(nest / "store")
    before = outside(nest)
    for call in (
        lambda: store.put(text, b"x"),
        lambda: store.get(text, 1000),
        lambda: store.has(text),
        lambda: list(store.list(text)),
        lambda: store.delete(text),
        lambda: store.put_head(text, b"x"),
        lambda: store.get_head(text, 1000),
    ):
        with contextlib.suppress(ConfigError, Missing, StoreError):
            call()
    assert outside(nest) == before


@given(text=TEXTS)
def test_what_passes_for_a_key_is_plain(text: str) -> None:
    if not is_key(text):
        with pytest.raises(ConfigError):
            check_key(text)
        return
    parts = text.split("/")
    assert check_key(text) == parts[-1]
    assert len(parts) in range(2, 6)
    assert all(part and not part.startswith((".", "-")) and part.isascii() and part == part.lower() for part in parts)


@given(site=SITES, data=st.binary())
def test_every_key_the_topology_makes_is_a_key(site: str, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    for key in (update_chunk(site, digest), model_chunk(digest), state_chunk(digest), record_key(digest)):
        assert check_key(key) == digest
