"""What commands make of a run, what its end makes of its updates, and by which receipt each end is told."""

from __future__ import annotations

from collections.abc import Mapping

from aggregator.events import UpdateState
from protocol.messages import GOING_ON, Outcome, RunState

OUTCOME: dict[UpdateState, Outcome] = {
    UpdateState.MERGED: Outcome.MERGED,
    UpdateState.REJECTED: Outcome.REJECTED,
    UpdateState.SUPERSEDED: Outcome.SUPERSEDED,
    UpdateState.RUN_ABORTED: Outcome.RUN_ABORTED,
    UpdateState.RUN_ENDED: Outcome.RUN_ENDED,
}
"""The receipt each final state is told by."""

AT_REST = (RunState.CREATED, RunState.STOPPED, RunState.ABORTED)
COMMANDS = {
    "run.start": (RunState.RUNNING, (RunState.PAUSED, *AT_REST)),
    "run.pause": (RunState.PAUSED, (RunState.RUNNING,)),
    "run.resume": (RunState.RUNNING, (RunState.PAUSED, RunState.STOPPED, RunState.ABORTED)),
    "run.stop": (RunState.STOPPED, GOING_ON),
    "run.abort": (RunState.ABORTED, GOING_ON),
}
"""What each command makes of a run, and in which states it is taken. What ended can go on from its newest version."""
LAST_STATE = {RunState.ABORTED: UpdateState.RUN_ABORTED, RunState.STOPPED: UpdateState.RUN_ENDED}
"""How a run's end ends its updates."""


def choose(named: object, runs: Mapping[str, RunState]) -> tuple[str, str]:
    """Which run a command is for that names one, or none if only one comes into question: its name, and `ok` or why
    there is none.
    """
    if named is not None:
        return (str(named), "ok") if named in runs else ("", "unknown_run")
    for some in ([name for name, state in runs.items() if state in GOING_ON], list(runs)):
        if len(some) == 1:
            return some[0], "ok"
        if some:
            return "", "which_run"
    return "", "no_run"
