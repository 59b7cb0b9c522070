"""What the aggregator may do at the broker and the store beyond its own part, if it was given the keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.blobs.s3.grants import Granter


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminAccess:
    """Each is None where the aggregator cannot do it; the operator who asks is told so."""

    cut_off: Callable[[str], None] | None = None
    """Take a site's login at the broker away, its open connections included."""
    granter: Granter | None = None
    """Signs URLs for sites without credentials for the store."""
    depths: Callable[[], Sequence[tuple[str, int | None, int | None]]] | None = None
    """Every queue with its waiting messages and its consumers; None is what the broker does not know."""
