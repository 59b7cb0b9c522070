"""What operators can command, in one table: who may, who obeys, and whether it has to be confirmed first.

Arguments and answers are plain values (`Command.arguments`, `Reply.values`). A table in an answer has one list for each
column, all of the same length.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial

from protocol.rights import Action

LONGEST_COMMAND = 24 * 3600.0
"""Seconds a command may be good for."""
TOLERANCE = 600.0
"""Seconds by which two clocks may differ."""
COUNTER_AHEAD = "counter_ahead"
"""The objection to a command whose number lies beyond every honest clock; it is not noted."""


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """One command."""

    name: str
    action: Action
    """What the operator needs the right to: at the aggregator, or at every site it is for."""
    summary: str
    _: KW_ONLY
    at_sites: bool
    """Whether sites obey (`Command.targets`); otherwise the aggregator does."""
    dangerous: bool = False
    """Whether a console asks before it sends it."""
    repeatable: bool = True
    """Whether a console may send it again by itself when answers came from members that its list lacked."""
    of_sites: bool = False
    """Whether the aggregator also answers operators who have the right at some sites alone, about these alone."""


_hub = partial(CommandSpec, at_sites=False)
_hub_own = partial(_hub, of_sites=True)
_hub_once = partial(_hub, repeatable=False)
_hub_grave = partial(_hub_once, dangerous=True)
_site = partial(CommandSpec, at_sites=True)
_site_once = partial(_site, repeatable=False)
_site_grave = partial(_site_once, dangerous=True)

_COMMANDS = (
    _hub_own("status", Action.VIEW, "A run, and every site: when last seen, what it does, how old its version is."),
    _hub("registry", Action.VIEW, "The signed list of members, for a kit that has an older one."),
    _hub("registry.put", Action.OPERATE, "Put a newer list of members, signed by the root, in force."),
    _hub("site.list", Action.VIEW, "Every member with its organisation, and whether its keys hold."),
    _hub_own("site.show", Action.VIEW, "One site: what it does now and what became of its updates."),
    _hub("site.quarantine", Action.OPERATE, "Take a site's updates no longer, but leave it connected.", dangerous=True),
    _hub_once("site.readmit", Action.OPERATE, "Take a quarantined site's updates again."),
    _hub_grave("site.revoke", Action.OPERATE, "Cut a site off at once; the root's signature follows."),
    _hub("upload.urls", Action.UPLOAD, "URLs under which an operator without credentials may put what it brings."),
    _hub("download.urls", Action.VIEW, "URLs under which an operator without credentials may get what is published."),
    _hub_once("run.create", Action.UPLOAD, "Take over a run that was uploaded: settings, code, version 0."),
    _hub("run.offer", Action.DEPLOY, "Hold a run's code ready for the sites there are now."),
    _hub_once("run.start", Action.TRAIN, "Begin a run, or go on with one that was paused, stopped or aborted."),
    _hub_once("run.clone", Action.UPLOAD, "Make a new run from another one's settings, code and version 0."),
    _hub_grave("run.delete", Action.TRAIN, "Forget a run that does not go on: its versions and updates."),
    _hub("run.list", Action.VIEW, "Every run with its state and version."),
    _hub("run.show", Action.VIEW, "The run's settings, state and reason."),
    _hub_once("run.pause", Action.TRAIN, "Merge nothing until the run is resumed; updates are still taken."),
    _hub_once("run.resume", Action.TRAIN, "Go on after a pause."),
    _hub_grave("run.stop", Action.TRAIN, "End the run in order; what waits gets its receipt."),
    _hub_grave("run.abort", Action.TRAIN, "End the run at once; workers drop what they train."),
    _hub("model.list", Action.VIEW, "Every version: members, staleness, digest."),
    _hub("model.show", Action.VIEW, "One version: who is in it, with which weight."),
    _hub_once("model.export", Action.VIEW, "Hold one version ready for this operator to pull."),
    _hub_once("model.publish", Action.DEPLOY, "Put a version into the catalogue, with a signed card."),
    _hub_once("model.promote", Action.DEPLOY, "Let a channel, such as production, name a published model."),
    _hub_grave("model.rollback", Action.DEPLOY, "Let a channel name the model again that it named before."),
    _hub("model.search", Action.VIEW, "Published models: name, run, version, labels, channels."),
    _hub("model.card", Action.VIEW, "Where a published model and its signed card lie."),
    _hub_own("update.list", Action.VIEW, "The newest updates and what became of them."),
    _hub_own("update.show", Action.VIEW, "One update."),
    _hub_own("update.receipt", Action.VIEW, "The aggregator's signed word on an update, for anybody to check."),
    _hub("metrics", Action.VIEW, "What sites measured of each version."),
    _hub("dead.list", Action.VIEW, "Messages that were refused, with the reason."),
    _hub("dead.show", Action.VIEW, "One refused message: from which queue, why, how large."),
    _hub_once("dead.replay", Action.OPERATE, "Hand refused messages to intake again, and say what became of each."),
    _hub_grave("dead.purge", Action.OPERATE, "Forget refused messages."),
    _hub_own("queue.list", Action.VIEW, "How many messages wait in each queue."),
    _hub("audit.log", Action.VIEW, "The newest entries of the hash-chained ledger."),
    _site("run.deploy", Action.DEPLOY, "Take over a run's code, so that the site can train it."),
    _site_grave("run.withdraw", Action.DEPLOY, "Forget a run's code and what is kept of the run."),
    _site_once("run.join", Action.TRAIN, "Train a run here, also after it was left."),
    _site_grave("run.leave", Action.TRAIN, "Drop what is trained of a run here, and train it no more."),
    _site("site.drain", Action.OPERATE, "Finish what is trained, send it, and train no more."),
    _site("site.undrain", Action.OPERATE, "Train again after a drain."),
    _site_grave("site.restart", Action.OPERATE, "End the worker in order; its supervisor starts it again."),
    _site_grave("site.shutdown", Action.OPERATE, "End the worker in order and leave it down."),
    _site("site.doctor", Action.OPERATE, "What the site's own checks say, without anything private."),
    _site("logs", Action.VIEW, "The newest lines of the worker's log, without anything private."),
    _site("stats", Action.VIEW, "Figures of the site's data, if the site shares them."),
    _site("sys.info", Action.OPERATE, "Memory, processors, disk and accelerators of the site's machine."),
    _site("file.pwd", Action.VIEW, "The folder that file commands start from."),
    _site("file.env", Action.VIEW, "Names of the worker's settings in its environment."),
    _site("file.ls", Action.VIEW, "A listing of the worker's own folder."),
    _site("file.cat", Action.VIEW, "A text file of the worker's own folder."),
    _site("file.head", Action.VIEW, "The first lines of one."),
    _site("file.tail", Action.VIEW, "The last lines of one."),
    _site("file.grep", Action.VIEW, "Lines of one that match."),
)
COMMANDS = {command.name: command for command in _COMMANDS}
"""Every command by name."""
