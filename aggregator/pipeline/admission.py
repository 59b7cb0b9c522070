"""Admission: the one pass in which an update's blob is fetched, hashed, decrypted and looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from broker.runtime.crash_points import crash_point
from protocol import limits
from protocol.cipher import Octets
from protocol.errors import Tampered
from protocol.spec import ModelSpec

_NOT_FINITE = "not_finite"
MAX_NORM = 1e18
"""A delta of a larger L2 norm would overflow float32 when combined; it is refused as `too_large_norm`."""


def inspect(spec: ModelSpec, payload: Iterable[Octets]) -> float:
    """The L2 norm of a delta whose every record holds what it has to.

    `payload` must itself refuse wrong hashes, lengths and tags (as `broker.blobs.transfer.read_blob` does).

    Raises:
        Tampered: `wrong_header`, `not_finite` or `too_large_norm`.
        StoreError: a chunk cannot be had.
    """
    header = spec.header
    squares = 0.0
    position = 0
    wide = np.empty(limits.RECORD // 4, np.float64)
    for record in payload:
        crash_point("aggregator.admitting")
        inside = max(0, min(len(record), len(header) - position))
        if inside and record[:inside] != header[position : position + inside]:
            raise Tampered("the payload's header is not the run's", "wrong_header")
        values = np.frombuffer(record, np.float32, (len(record) - inside) // 4, inside)
        view = wide[: values.size]
        np.copyto(view, values)
        # The square of any finite float32 fits float64, so the sum is finite exactly when every value is.
        # einsum, because BLAS would wake all its threads for a dot product of this size (2.1 against 0.2 ms of CPU).
        squares += float(np.einsum("i,i->", view, view))
        if not math.isfinite(squares):
            raise Tampered("the delta holds values that are not finite", _NOT_FINITE)
        position += len(record)
    norm = math.sqrt(squares)
    if norm > MAX_NORM:
        raise Tampered("the delta's norm is beyond anything training produces", "too_large_norm")
    return norm
