"""What may be said of a site: the events its log may name, and for each field the shape its value must have.

Lists of what may pass, never of what may not: an event or a field that is not written down here stays at the site.
"""

from __future__ import annotations

import builtins
import re
from typing import Final

from protocol import errors

EVENTS: Final = frozenset(
    {
        *("broker.blocked", "broker.close_failed", "broker.connected", "broker.link_failed", "broker.lost"),
        *("broker.unblocked", "cache.dropped", "cache.not_written", "callback.failed", "code.dropped", "code.kept"),
        "configuration.changed",
        *("consume.cancelled_by_broker", "consume.lost", "epoch.renewed", "event.dropped", "handler.failed"),
        *("handler.still_running", "head.not_there", "head.stale", "head.went_back", "journal.blocked"),
        *("grant.not_asked_for", "hello.dropped", "lane.failed", "order.obeyed", "store.retry", "worker.accepted"),
        *("kit.used_twice", "site.member_again", "site.revoked"),
        *("message.dead_lettered", "message.dropped", "message.oversize", "message.refused", "metric.left_out"),
        *("measuring.started", "model.kept", "model.not_kept", "model.stays_here", "run.waiting"),
        *(
            "observer.failed",
            "outbox.dropped",
            "outbox.retry",
            "own.not_dropped",
            "privacy.off",
            "publish.refused",
            "schedule.left_out",
        ),
        *("record.not_read", "record.refused", "registry.changed", "registry.went_back", "training.aborted"),
        *("training.done", "training.failed", "training.started", "training.still_running", "update.published"),
        *("update.resealed", "update.settled", "update.spooled", "upload.done", "upload.failed"),
        *("upload.started", "version.measured", "version.received", "worker.failed", "worker.opened", "worker.started"),
        *("worker.stopped",),
    }
)
"""Every event that worker and broker log; a trainer's own events are not among them, and nothing of them is told."""

LEVELS: Final = frozenset({"debug", "info", "warning", "error", "critical"})

KINDS: Final = frozenset(
    {name for name in (*dir(builtins), *dir(errors)) if name.endswith(("Error", "Exception", "Exit", "Interrupt"))}
    | {name for name, value in vars(errors).items() if isinstance(value, type)}
    | {"OutOfMemoryError", "CalledProcessError", "TimeoutExpired", "JSONDecodeError", "ModuleNotFoundError"}
)
"""Kinds of errors that are told by name; a trainer may name its own after anything."""

NUMBERS: Final = frozenset(
    {
        *("accepted", "again_in_s", "anew", "born", "bytes", "cache_mb", "chunks", "count"),
        *("epoch", "examples", "exclude", "heartbeat", "known"),
        *("leftovers", "limit", "loss", "lost", "number", "overdue_s", "pid", "progress", "registry"),
        *("returns", "seconds", "seen", "sequence", "spool_mb", "started", "steps", "updates"),
        *("version", "waited_s"),
    }
)
"""Fields whose value is a number, or true or false."""

_FIXED = r"[a-z][a-z_]{0,31}"
_NAME = r"[A-Za-z][A-Za-z0-9._:+-]{0,63}"

WORDS: Final = {
    "case": re.compile(r"-|[2-9b-z]{7}"),
    "command": re.compile(r"[a-z]+(?:\.[a-z]+)?"),
    "code": re.compile(rf"-|{_FIXED}"),
    "exchange": re.compile(_NAME),
    "federation": re.compile(_NAME),
    "filter": re.compile(_FIXED.replace("_]", "_-]")),
    "filters": re.compile(r"[a-z][a-z-]{0,31}(?:,[a-z][a-z-]{0,31})*"),
    "link": re.compile(_NAME),
    "operator": re.compile(r"[a-z][a-z0-9-]{0,62}"),
    "outcome": re.compile(_FIXED),
    "queue": re.compile(_NAME),
    "reason": re.compile(_FIXED),
    "run": re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}"),
    "site": re.compile(r"[a-z][a-z0-9-]{0,62}"),
    "state": re.compile(_FIXED),
    "update": re.compile(r"[0-9a-f]{8}"),
    "what": re.compile(r"PullHead|FetchRegistry|FetchVersion"),
}
"""Fields whose value is a word of this shape; whatever else stands there is left out."""
