"""What operators can command, in one table: who may, who obeys, and whether it has to be confirmed first.

Arguments and answers are plain values (`Command.arguments`, `Reply.values`). A table in an answer has one list for each
column, all of the same length.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.rights import Action

LONGEST_COMMAND = 24 * 3600.0
"""Seconds a command may be good for."""
TOLERANCE = 600.0
"""Seconds by which two clocks may differ."""
COUNTER_AHEAD = "counter_ahead"
"""The objection to a command whose number lies beyond every honest clock; it is not noted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    """One command."""

    name: str
    action: Action
    """What the operator needs the right to: at the aggregator, or at every site it is for."""
    at_sites: bool
    """Whether sites obey (`Command.targets`); otherwise the aggregator does."""
    summary: str
    dangerous: bool = False
    """Whether a console asks before it sends it."""
    repeatable: bool = True
    """Whether a console may send it again by itself when answers came from members that its list lacked."""


def _hub(name: str, action: Action, summary: str, *, dangerous: bool = False, repeatable: bool = True) -> CommandSpec:
    return CommandSpec(
        name=name, action=action, at_sites=False, summary=summary, dangerous=dangerous, repeatable=repeatable
    )


def _site(name: str, action: Action, summary: str, *, dangerous: bool = False, repeatable: bool = True) -> CommandSpec:
    return CommandSpec(
        name=name, action=action, at_sites=True, summary=summary, dangerous=dangerous, repeatable=repeatable
    )


COMMANDS: dict[str, CommandSpec] = {
    command.name: command
    for command in (
        _hub("status", Action.VIEW, "A run, and every site: when last seen, what it does, how old its version is."),
        _hub("registry", Action.VIEW, "The signed list of members, for a kit that has an older one."),
        _hub("registry.put", Action.OPERATE, "Put a newer list of members, signed by the root, in force."),
        _hub("site.list", Action.VIEW, "Every member with its organisation, and whether its keys hold."),
        _hub("site.show", Action.VIEW, "One site: what it does now and what became of its updates."),
        _hub(
            "site.quarantine",
            Action.OPERATE,
            "Take a site's updates no longer, but leave it connected.",
            dangerous=True,
        ),
        _hub("site.readmit", Action.OPERATE, "Take a quarantined site's updates again.", repeatable=False),
        _hub(
            "site.revoke",
            Action.OPERATE,
            "Cut a site off at once; the root's signature follows.",
            dangerous=True,
            repeatable=False,
        ),
        _hub("upload.urls", Action.UPLOAD, "URLs under which an operator without credentials may put what it brings."),
        _hub(
            "download.urls", Action.VIEW, "URLs under which an operator without credentials may get what is published."
        ),
        _hub(
            "run.create",
            Action.UPLOAD,
            "Take over a run that was uploaded: settings, code, version 0.",
            repeatable=False,
        ),
        _hub("run.offer", Action.DEPLOY, "Hold a run's code ready for the sites there are now."),
        _hub(
            "run.start",
            Action.TRAIN,
            "Begin a run, or go on with one that was paused, stopped or aborted.",
            repeatable=False,
        ),
        _hub(
            "run.clone",
            Action.UPLOAD,
            "Make a new run from another one's settings, code and version 0.",
            repeatable=False,
        ),
        _hub(
            "run.delete",
            Action.TRAIN,
            "Forget a run that does not go on: its versions and updates.",
            dangerous=True,
            repeatable=False,
        ),
        _hub("run.list", Action.VIEW, "Every run with its state and version."),
        _hub("run.show", Action.VIEW, "The run's settings, state and reason."),
        _hub(
            "run.pause",
            Action.TRAIN,
            "Merge nothing until the run is resumed; updates are still taken.",
            repeatable=False,
        ),
        _hub("run.resume", Action.TRAIN, "Go on after a pause.", repeatable=False),
        _hub(
            "run.stop",
            Action.TRAIN,
            "End the run in order; what waits gets its receipt.",
            dangerous=True,
            repeatable=False,
        ),
        _hub(
            "run.abort",
            Action.TRAIN,
            "End the run at once; workers drop what they train.",
            dangerous=True,
            repeatable=False,
        ),
        _hub("model.list", Action.VIEW, "Every version: members, staleness, digest."),
        _hub("model.show", Action.VIEW, "One version: who is in it, with which weight."),
        _hub("model.export", Action.VIEW, "Hold one version ready for this operator to pull.", repeatable=False),
        _hub("model.publish", Action.DEPLOY, "Put a version into the catalogue, with a signed card.", repeatable=False),
        _hub(
            "model.promote",
            Action.DEPLOY,
            "Let a channel, such as production, name a published model.",
            repeatable=False,
        ),
        _hub(
            "model.rollback",
            Action.DEPLOY,
            "Let a channel name the model again that it named before.",
            dangerous=True,
            repeatable=False,
        ),
        _hub("model.search", Action.VIEW, "Published models: name, run, version, labels, channels."),
        _hub("model.card", Action.VIEW, "Where a published model and its signed card lie."),
        _hub("update.list", Action.VIEW, "The newest updates and what became of them."),
        _hub("update.show", Action.VIEW, "One update."),
        _hub("metrics", Action.VIEW, "What sites measured of each version."),
        _hub("dead.list", Action.VIEW, "Messages that were refused, with the reason."),
        _hub("dead.show", Action.VIEW, "One refused message: from which queue, why, how large."),
        _hub("dead.replay", Action.OPERATE, "Hand a refused message to intake again.", repeatable=False),
        _hub("dead.purge", Action.OPERATE, "Forget refused messages.", dangerous=True, repeatable=False),
        _hub("queue.list", Action.VIEW, "How many messages wait in each queue."),
        _hub("audit.log", Action.VIEW, "The newest entries of the hash-chained ledger."),
        _site("run.deploy", Action.DEPLOY, "Take over a run's code, so that the site can train it."),
        _site(
            "run.withdraw",
            Action.DEPLOY,
            "Forget a run's code and what is kept of the run.",
            dangerous=True,
            repeatable=False,
        ),
        _site("run.join", Action.TRAIN, "Train a run here, also after it was left.", repeatable=False),
        _site(
            "run.leave",
            Action.TRAIN,
            "Drop what is trained of a run here, and train it no more.",
            dangerous=True,
            repeatable=False,
        ),
        _site("site.drain", Action.OPERATE, "Finish what is trained, send it, and train no more."),
        _site("site.undrain", Action.OPERATE, "Train again after a drain."),
        _site(
            "site.restart",
            Action.OPERATE,
            "End the worker in order; its supervisor starts it again.",
            dangerous=True,
            repeatable=False,
        ),
        _site(
            "site.shutdown",
            Action.OPERATE,
            "End the worker in order and leave it down.",
            dangerous=True,
            repeatable=False,
        ),
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
}
"""Every command by name."""
