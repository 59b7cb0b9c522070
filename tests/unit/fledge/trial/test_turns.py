"""Sites of a trial train one at a time, in order, and whoever waits can be stopped."""

from __future__ import annotations

import threading

import pytest

from fledge.trial.turns import Turns
from protocol.errors import Aborted
from worker.api.trainer import Control


def train(turns: Turns, site: str, done: list[str], control: Control | None = None) -> threading.Thread:
    def work() -> None:
        with turns.training(site, control or Control(run="r", version=0)):
            done.append(site)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_next_site_trains_when_the_update_before_has_arrived() -> None:
    turns, done = Turns(["a", "b", "c"], in_order=True), list[str]()
    threads = [train(turns, site, done) for site in ("c", "b", "a")]
    threads[2].join(10)
    assert done == ["a"]
    assert not turns.quiet
    turns.arrived()
    threads[1].join(10)
    assert done == ["a", "b"]
    turns.arrived()
    threads[0].join(10)
    assert done == ["a", "b", "c"]
    turns.arrived()
    assert turns.quiet
    again = train(turns, "a", done)
    again.join(10)
    assert done[-1] == "a"


def test_nobody_trains_while_something_is_to_be_measured() -> None:
    turns, done = Turns(["a"], in_order=False), list[str]()
    turns.hold()
    thread = train(turns, "a", done)
    with turns.measuring():
        turns.release()
        assert done == []
    thread.join(10)
    assert done == ["a"]


def test_a_failed_training_leaves_the_turn_to_others_out_of_order_and_is_quiet() -> None:
    turns = Turns(["a"], in_order=True)
    with pytest.raises(ZeroDivisionError), turns.training("a", Control(run="r", version=0)):
        raise ZeroDivisionError
    assert turns.quiet


@pytest.mark.parametrize("how", ["abort", "over"])
def test_whoever_waits_can_be_stopped(how: str) -> None:
    turns, abort = Turns(["a", "b"], in_order=True), threading.Event()
    (abort.set if how == "abort" else turns.stop)()
    control = Control(run="r", version=0, abort=abort)
    with pytest.raises(Aborted), turns.training("b", control):
        pass
