"""The rules about this site's place in the federation: listed by the registry in force, and heard by the hub.

Part of the worker's rules: nothing here does I/O. A revoked site trains and sends nothing, keeps its journal, and goes
on by itself once a newer registry lists its keys, or the hub seals something for it again.
"""

from __future__ import annotations

from protocol.keys import Participant
from protocol.messages import Receipt
from protocol.registry import Entry, Registry
from worker.domain.effects import AbortTraining, Judged
from worker.domain.events import SiteLeftOut
from worker.domain.state import RunRow
from worker.rules.decisions import Decisions

_WORD = "revoked"


class Membership:
    """Whether the site is still a member, and by what it is known if it is not."""

    def __init__(self, me: Participant | None, registry: Registry) -> None:
        """`registry` is the one in force; without `me` every sign is overlooked."""
        self._me = me
        self._registry = registry
        self._unlisted = self._entry() is None
        self._left_out = ""
        self._told = ""

    @property
    def why(self) -> str:
        """What shows that the site is revoked: `registry`, `record` or `receipt`; empty while it is a member."""
        if self._me is None:
            return ""
        return "registry" if self._unlisted else self._left_out

    def on_registry(self, registry: Registry) -> None:
        """The root has signed another list; what was known by other signs is to be shown anew."""
        self._registry = registry
        self._unlisted, self._left_out = self._entry() is None, ""

    def on_receipt(self, receipt: Receipt) -> None:
        """The hub says of an update what it did with it."""
        if receipt.reason == _WORD:
            self._left_out = "receipt"

    def on_left_out(self, event: SiteLeftOut, known: RunRow) -> None:
        """An operator's word alone revokes, before the root has signed: then records are no longer sealed for the site.

        A newcomer is left out, too, until the hub has sealed anew what there is; so whom the newest registry added, or
        who has seen nothing of the run yet, has to lose a version that it held.
        """
        entry = self._entry()
        newcomer = entry is not None and entry.since == self._registry.version
        if event.version == known.version or (event.version > known.version >= 0 and not newcomer):
            self._left_out = "record"

    def welcome(self) -> None:
        """The hub seals for this site, or answers it."""
        self._left_out = ""

    def tick(self, decided: Decisions) -> None:
        """Tell of a change once; nothing more may come of what is being trained."""
        if self.why == self._told:
            return
        if bool(self.why) != bool(self._told):
            decided.effects.append(Judged(why=self.why))
            if self.why:
                decided.effects.append(AbortTraining())
        self._told = self.why

    def _entry(self) -> Entry | None:
        mine = (entry for entry in self._registry.entries if entry.participant == self._me)
        return next((entry for entry in mine if entry.revoked is None), None)
