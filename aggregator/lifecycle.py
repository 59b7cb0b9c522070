"""What commands make of a run, what its end makes of its updates, and by which receipt each end is told."""

from __future__ import annotations

from aggregator.events import UpdateState
from protocol.messages import Outcome, RunState

OUTCOME: dict[UpdateState, Outcome] = {
    UpdateState.MERGED: Outcome.MERGED,
    UpdateState.REJECTED: Outcome.REJECTED,
    UpdateState.SUPERSEDED: Outcome.SUPERSEDED,
    UpdateState.RUN_ABORTED: Outcome.RUN_ABORTED,
    UpdateState.RUN_ENDED: Outcome.RUN_ENDED,
}
"""The receipt each final state is told by."""

COMMANDS = {
    "run.pause": (RunState.PAUSED, (RunState.RUNNING,)),
    "run.resume": (RunState.RUNNING, (RunState.PAUSED,)),
    "run.stop": (RunState.STOPPED, (RunState.RUNNING, RunState.PAUSED)),
    "run.abort": (RunState.ABORTED, (RunState.RUNNING, RunState.PAUSED)),
}
"""What each command makes of a run, and in which states it is taken."""
LAST_STATE = {RunState.ABORTED: UpdateState.RUN_ABORTED, RunState.STOPPED: UpdateState.RUN_ENDED}
"""How a run's end ends its updates."""
