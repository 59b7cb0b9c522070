"""The outbox's relay: every row until the broker confirms it, without a thread for each."""

from __future__ import annotations

import queue
import random
import threading
from collections import Counter
from concurrent.futures import Future
from typing import cast

import pytest

from broker.transport.base import Transport
from broker.transport.outbox import OutboxRow, Relay
from protocol.errors import TooLarge, TransportError

ROWS = [OutboxRow(id=number, exchange="ex", key="k", body=b"%d" % number) for number in range(1, 301)]


class Broker:
    """Answers each message's first `away` publishes with an error; and one that is too large for ever."""

    def __init__(self, away: int) -> None:
        self.away = away
        self.tries: Counter[bytes] = Counter()
        self.threads: set[str] = set()

    def publish(self, exchange: str, key: str, body: bytes) -> Future[None]:
        self.tries[body] += 1
        self.threads.add(threading.current_thread().name)
        future: Future[None] = Future()
        if body == b"large":
            future.set_exception(TooLarge("too large"))
        elif self.tries[body] > self.away:
            future.set_result(None)
        else:
            raise TransportError("the broker is away")
        return future


def relay(broker: Broker) -> tuple[Relay, queue.SimpleQueue[int]]:
    sent: queue.SimpleQueue[int] = queue.SimpleQueue()
    return Relay(cast("Transport", broker), sent.put, dice=random.Random(1)), sent


def test_every_row_is_tried_until_it_is_confirmed_by_one_thread_for_all() -> None:
    broker = Broker(away=2)
    outbox, sent = relay(broker)
    outbox.send(ROWS)
    outbox.send(ROWS)  # in flight already
    assert {sent.get(timeout=20) for _ in ROWS} == {row.id for row in ROWS}
    assert set(broker.tries.values()) == {3}
    assert broker.threads == {threading.current_thread().name, "outbox"}
    outbox.close()


def test_a_row_that_no_broker_will_ever_take_is_given_up() -> None:
    outbox, sent = relay(Broker(away=0))
    outbox.send([OutboxRow(id=7, exchange="ex", key="k", body=b"large")])
    assert sent.get(timeout=5) == 7
    outbox.close()


def test_closing_ends_the_retries_and_their_thread() -> None:
    broker = Broker(away=1000)
    outbox, sent = relay(broker)
    before = set(threading.enumerate())
    outbox.send(ROWS[:3])
    (thread,) = set(threading.enumerate()) - before
    outbox.close()
    thread.join(timeout=5)
    assert not thread.is_alive()
    outbox.send(ROWS)
    assert set(broker.tries) == {row.body for row in ROWS[:3]}
    with pytest.raises(queue.Empty):
        sent.get_nowait()
