"""Sites of a trial train one at a time, in order, and whoever waits can be stopped."""

from __future__ import annotations

import threading

import pytest

from fledge.trial.scheduler import Scheduler
from protocol.errors import Aborted
from worker.api.trainer import Control


def train(scheduler: Scheduler, site: str, done: list[str], control: Control | None = None) -> threading.Thread:
    def work() -> None:
        with scheduler.training(site, control or Control(run="r", version=0)):
            done.append(site)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_next_site_trains_when_the_update_before_has_arrived() -> None:
    scheduler, done = Scheduler(["a", "b", "c"], in_order=True), list[str]()
    threads = [train(scheduler, site, done) for site in ("c", "b", "a")]
    threads[2].join(10)
    assert done == ["a"]
    assert not scheduler.quiet
    scheduler.arrived()
    threads[1].join(10)
    assert done == ["a", "b"]
    scheduler.arrived()
    threads[0].join(10)
    assert done == ["a", "b", "c"]
    scheduler.arrived()
    assert scheduler.quiet
    again = train(scheduler, "a", done)
    again.join(10)
    assert done[-1] == "a"


def test_nobody_trains_while_something_is_to_be_measured() -> None:
    scheduler, done = Scheduler(["a"], in_order=False), list[str]()
    scheduler.hold()
    thread = train(scheduler, "a", done)
    with scheduler.measuring():
        scheduler.release()
        assert done == []
    thread.join(10)
    assert done == ["a"]


def test_a_failed_training_leaves_the_turn_to_others_out_of_order_and_is_quiet() -> None:
    scheduler = Scheduler(["a"], in_order=True)
    with pytest.raises(ZeroDivisionError), scheduler.training("a", Control(run="r", version=0)):
        raise ZeroDivisionError
    assert scheduler.quiet


@pytest.mark.parametrize("how", ["abort", "over"])
def test_whoever_waits_can_be_stopped(how: str) -> None:
    scheduler, abort = Scheduler(["a", "b"], in_order=True), threading.Event()
    (abort.set if how == "abort" else scheduler.stop)()
    control = Control(run="r", version=0, abort=abort)
    with pytest.raises(Aborted), scheduler.training("b", control):
        pass
