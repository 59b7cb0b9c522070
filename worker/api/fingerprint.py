"""A keyed fingerprint of a data set: the site can later prove which data it trained on; others learn nothing."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

import numpy as np

from protocol.errors import TrainingError
from protocol.messages import Fingerprint

_PURPOSE = b"fledge/v1/fingerprint\0"


def fingerprint(examples: Iterable[object], key: bytes) -> Fingerprint:
    """Count the examples and take HMAC-SHA-256 over their sorted digests, so that their order does not matter.

    Examples are arrays, tensors, numbers, text, bytes, None, and tuples, lists or mappings of these. `key`, at least
    16 random bytes, stays at the site.

    Raises:
        TrainingError: the key is too short, or an example is something else.
    """
    if len(key) < 16:
        raise TrainingError(f"a fingerprint's key has at least 16 bytes, not {len(key)}")
    digests = sorted(_digest(example) for example in examples)
    root = hmac.new(key, _PURPOSE, "sha256")
    for digest in digests:
        root.update(digest)
    return Fingerprint(count=len(digests), root=root.digest())


def _digest(example: object) -> bytes:
    hasher = hashlib.sha256()
    _feed(hasher, example)
    return hasher.digest()


def _feed(hasher: hashlib._Hash, value: object) -> None:
    """Hash a value after its type and length, so that no two different ones look the same."""
    match value:
        case bytes():
            _tagged(hasher, "bytes", value)
        case str():
            _tagged(hasher, "text", value.encode())
        case None | bool() | int() | float():
            _tagged(hasher, type(value).__name__, repr(value).encode())
        case Mapping():
            _tagged(hasher, f"map {len(value)}", b"")
            for name in sorted(value):
                _feed(hasher, name)
                _feed(hasher, value[name])
        case tuple() | list():
            _tagged(hasher, f"list {len(value)}", b"")
            for item in value:
                _feed(hasher, item)
        case _:
            array = np.asarray(value)
            if array.dtype.hasobject:
                raise TrainingError(f"a fingerprint cannot cover examples of type {type(value).__name__}")
            _tagged(hasher, f"{array.dtype.str} {array.shape}", np.ascontiguousarray(array).tobytes())


def _tagged(hasher: hashlib._Hash, tag: str, data: bytes) -> None:
    hasher.update(f"{tag}:{len(data)}:".encode())
    hasher.update(data)
