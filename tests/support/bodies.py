"""Bodies of messages by their kind, for tests that take whatever comes."""

from __future__ import annotations

from typing import Any

from protocol.envelope import ContentKey, Verified, body
from protocol.messages import BODY


def typed_body(verified: Verified, key: ContentKey | None = None) -> Any:
    """The body decoded as its kind says."""
    return body(verified, BODY[verified.kind], key)
