"""What every transport promises, whichever one it is; RabbitMQ is reached through the fault proxy."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Protocol

import pytest

from broker.transport.base import Delivery, Transport
from broker.transport.open import open_transport
from protocol import limits
from protocol.errors import QueueFull, TooLarge, TransportError, Unroutable
from protocol.topology import DEAD, DEAD_LETTERS, Binding, Exchange, Queue, Topology
from tests.support.collect import Collector
from tests.support.waiting import DEADLINE, eventually


class Broker(Protocol):
    """One broker, reached by as many handles as a test likes."""

    def open(self) -> Transport: ...

    def apply(self, topology: Topology) -> None:
        """Declare a topology with its limits."""
        ...


class BrokerByUrl:
    """Somebody else's transport; nothing may be left on its broker once all handles are closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.handles: list[Transport] = []

    def open(self) -> Transport:
        self.handles.append(open_transport(self.url))
        return self.handles[-1]

    def apply(self, topology: Topology) -> None:
        self.open().declare(topology)

    def close(self) -> None:
        for handle in self.handles:
            handle.close()


GIVEN = os.environ.get("FLEDGE_CONTRACT_TRANSPORT", "")
"""The URL of a transport from outside the repository; then this suite is about that one alone."""


@pytest.fixture(params=[GIVEN] if GIVEN else ["memory:contract", pytest.param("rabbit", marks=pytest.mark.servers)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    if request.param == "rabbit":
        yield request.getfixturevalue("rabbit_broker")
        return
    found = BrokerByUrl(request.param)
    yield found
    found.close()


@pytest.fixture
def transport(broker: Broker) -> Transport:
    return broker.open()


PLAIN = Queue(name="plain.q", max_length=10_000, overflow="reject-publish")
DEAD_QUEUE = Queue(name=DEAD_LETTERS, max_length=1000, overflow="reject-publish")


def one_queue(queue: Queue = PLAIN) -> Topology:
    """An exchange `x` in front of one queue, and the dead letters."""
    return Topology(
        exchanges=(Exchange(name="x", type="fanout"), Exchange(name=DEAD, type="fanout")),
        queues=(queue, DEAD_QUEUE),
        bindings=(Binding(exchange="x", queue=queue.name), Binding(exchange=DEAD, queue=DEAD_LETTERS)),
    )


def send(transport: Transport, *bodies: bytes, exchange: str = "x", key: str = "") -> None:
    for future in [transport.publish(exchange, key, body) for body in bodies]:
        future.result(DEADLINE)


def numbered(count: int) -> list[bytes]:
    return [b"%d" % i for i in range(count)]


def test_a_published_message_arrives_byte_for_byte(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    got = Collector()
    transport.consume("plain.q", got)
    body = bytes(range(256)) * 1024
    send(transport, body, b"")
    first, second = got.wait_for(2)
    assert (first.body, second.body) == (body, b"")
    assert (first.queue, first.redelivered) == ("plain.q", False)


def test_a_body_over_the_cap_is_refused_at_once(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    send(transport, b"x" * limits.MESSAGE)
    with pytest.raises(TooLarge, match="262145"):
        transport.publish("x", "", b"x" * (limits.MESSAGE + 1))


def test_declaring_again_changes_nothing(broker: Broker, transport: Transport) -> None:
    transport.declare(one_queue())
    send(transport, b"kept")
    broker.open().declare(one_queue())
    broker.apply(one_queue())
    eventually(lambda: transport.depth("plain.q") == 1, "the message is counted")
    got = Collector()
    transport.consume("plain.q", got)
    assert got.wait_for(1)[0].body == b"kept"


def test_declaring_other_arguments_is_refused(broker: Broker, transport: Transport) -> None:
    transport.declare(one_queue())
    other = Queue(name="plain.q", max_length=10, overflow="reject-publish", single_active_consumer=True)
    with pytest.raises(TransportError, match=r"plain\.q"):
        transport.declare(one_queue(other))
    send(transport, b"still works")


def test_messages_of_one_publisher_keep_their_order(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    got = Collector()
    transport.consume("plain.q", got, prefetch=32)
    bodies = numbered(300)
    send(transport, *bodies)
    got.wait_for(300)
    assert got.bodies == bodies


def test_five_hundred_publishes_may_be_outstanding(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    bodies = numbered(500)
    futures = [transport.publish("x", "", body) for body in bodies]
    done, pending = wait(futures, DEADLINE)
    assert not pending
    assert [future.exception() for future in done] == [None] * 500
    got = Collector()
    transport.consume("plain.q", got, prefetch=100)
    got.wait_for(500)
    assert sorted(got.bodies) == sorted(bodies)


def test_many_threads_may_share_one_transport(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    got = Collector()
    transport.consume("plain.q", got)
    futures: list[Future[None]] = []

    def publish(thread: int) -> None:
        futures.extend([transport.publish("x", "", b"%d.%d" % (thread, i)) for i in range(50)])

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for future in futures:
        future.result(DEADLINE)
    got.wait_for(400)
    for n in range(8):
        own = [body for body in got.bodies if body.startswith(b"%d." % n)]
        assert own == [b"%d.%d" % (n, i) for i in range(50)]


def test_a_fanout_reaches_every_bound_queue(broker: Broker, transport: Transport) -> None:
    queues = tuple(Queue(name=f"down.s{n}", max_length=64, overflow="drop-head") for n in range(3))
    bindings = tuple(Binding(exchange="all", queue=queue.name) for queue in queues)
    broker.apply(Topology(exchanges=(Exchange(name="all", type="fanout"),), queues=queues, bindings=bindings))
    collectors = [Collector() for _ in queues]
    for queue, got in zip(queues, collectors, strict=True):
        transport.consume(queue.name, got)
    send(transport, b"v1", b"v2", exchange="all")
    for got in collectors:
        got.wait_for(2)
        assert got.bodies == [b"v1", b"v2"]


def test_a_direct_exchange_reaches_only_the_named_queue(broker: Broker, transport: Transport) -> None:
    queues = tuple(Queue(name=f"inbox.{n}", max_length=64, overflow="reject-publish") for n in ("a", "b"))
    bindings = tuple(Binding(exchange="to", queue=f"inbox.{n}", key=n) for n in ("a", "b"))
    broker.apply(Topology(exchanges=(Exchange(name="to", type="direct"),), queues=queues, bindings=bindings))
    send(transport, b"for b", exchange="to", key="b")
    got = Collector()
    transport.consume("inbox.b", got)
    assert got.wait_for(1)[0].body == b"for b"
    assert transport.depth("inbox.a") == 0
    with pytest.raises(Unroutable):
        transport.publish("to", "c", b"for nobody").result(DEADLINE)


def test_unroutable_messages_fail_and_the_others_do_not(broker: Broker, transport: Transport) -> None:
    broker.apply(
        Topology(
            exchanges=(Exchange(name="x", type="direct"),),
            queues=(PLAIN,),
            bindings=(Binding(exchange="x", queue="plain.q", key="known"),),
        )
    )
    futures = [transport.publish("x", "known" if i % 3 else "unknown", b"%d" % i) for i in range(60)]
    for i, future in enumerate(futures):
        if i % 3:
            assert future.result(DEADLINE) is None
        else:
            assert isinstance(future.exception(DEADLINE), Unroutable)


def test_a_missing_exchange_is_unroutable_and_does_not_disturb_others(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    with pytest.raises(Unroutable, match="nowhere"):
        transport.publish("nowhere", "", b"lost").result(DEADLINE)
    send(transport, b"arrives")


def test_a_message_given_back_comes_again_marked(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    got = Collector(settle=lambda d: d.ack() if d.redelivered else d.retry())
    transport.consume("plain.q", got)
    send(transport, b"again")
    first, second = got.wait_for(2)
    assert (first.redelivered, second.redelivered) == (False, True)
    assert second.body == b"again"


def test_a_failing_handler_gives_its_delivery_back(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())

    def fail_once(delivery: Delivery) -> None:
        if not delivery.redelivered:
            raise RuntimeError("this handler fails the first time")
        delivery.ack()

    got = Collector(settle=fail_once)
    transport.consume("plain.q", got)
    send(transport, b"one")
    assert [d.redelivered for d in got.wait_for(2)] == [False, True]


def test_after_the_delivery_limit_a_message_is_dead_lettered(broker: Broker, transport: Transport) -> None:
    limited = Queue(name="in.a", max_length=64, overflow="reject-publish", dead_letter=True, delivery_limit=3)
    broker.apply(one_queue(limited))
    dead, got = Collector(), Collector(settle=Delivery.retry)
    transport.consume(DEAD_LETTERS, dead)
    transport.consume("in.a", got)
    send(transport, b"poison")
    assert dead.wait_for(1)[0].body == b"poison"
    assert got.bodies == [b"poison"] * 4  # once, and three times again
    eventually(lambda: transport.depth("in.a") == 0, "the queue is empty")


def test_a_delivery_set_aside_goes_to_the_dead_letters(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue(Queue(name="in.a", max_length=64, overflow="reject-publish", dead_letter=True)))
    dead, got = Collector(), Collector(settle=Delivery.dead_letter)
    transport.consume(DEAD_LETTERS, dead)
    transport.consume("in.a", got)
    send(transport, b"odd")
    assert dead.wait_for(1)[0].body == b"odd"
    assert got.bodies == [b"odd"]


def test_a_queue_without_dead_letters_drops_what_is_set_aside(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    got = Collector(settle=lambda d: d.dead_letter() if d.body == b"odd" else d.ack())
    transport.consume("plain.q", got)
    send(transport, b"odd", b"good")
    got.wait_for(2)
    assert got.bodies == [b"odd", b"good"]
    assert transport.depth(DEAD_LETTERS) == 0


def test_a_full_queue_pushes_back_until_it_is_drained(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue(Queue(name="in.a", max_length=8, overflow="reject-publish")))
    accepted: list[bytes] = []
    refused = None
    for body in numbered(200):
        refused = transport.publish("x", "", body).exception(DEADLINE)
        if refused is not None:
            break
        accepted.append(body)
    assert isinstance(refused, QueueFull)
    assert 8 <= len(accepted) < 20  # a quorum queue notices a little late
    got = Collector()
    transport.consume("in.a", got)
    got.wait_for(len(accepted))
    assert got.bodies == accepted
    eventually(
        lambda: transport.publish("x", "", b"more").exception(DEADLINE) is None, "the queue takes messages again"
    )


def test_one_full_queue_of_a_fanout_fails_the_publish_and_spares_the_others(
    broker: Broker, transport: Transport
) -> None:
    queues = (
        Queue(name="small.q", max_length=1, overflow="reject-publish"),
        Queue(name="large.q", max_length=1000, overflow="reject-publish"),
    )
    bindings = tuple(Binding(exchange="x", queue=queue.name) for queue in queues)
    broker.apply(Topology(exchanges=(Exchange(name="x", type="fanout"),), queues=queues, bindings=bindings))
    outcomes = [transport.publish("x", "", body).exception(DEADLINE) for body in numbered(12)]
    assert isinstance(outcomes[-1], QueueFull)
    got = Collector()
    transport.consume("large.q", got)
    got.wait_for(12)
    assert got.bodies == numbered(12)


def test_drop_head_keeps_the_newest(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue(Queue(name="down.a", max_length=16, overflow="drop-head")))
    send(transport, *numbered(50))
    got = Collector()
    transport.consume("down.a", got)
    got.wait_until(lambda bodies: b"49" in bodies, "the newest message")
    assert got.bodies == numbered(50)[-len(got.bodies) :]
    assert 16 <= len(got.bodies) <= 17


def test_at_most_prefetch_deliveries_are_unsettled(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    send(transport, *numbered(10))
    got = Collector(settle=None)
    transport.consume("plain.q", got, prefetch=3)
    got.wait_for(3)
    eventually(lambda: transport.depth("plain.q") == 7, "the broker keeps the rest")
    assert len(got.bodies) == 3
    got.deliveries[0].ack()
    got.wait_for(4)
    eventually(lambda: transport.depth("plain.q") == 6, "one more was handed out")
    assert got.bodies == numbered(4)


def test_a_delivery_may_be_settled_from_another_thread_and_only_the_first_counts(
    broker: Broker, transport: Transport
) -> None:
    broker.apply(one_queue())
    got = Collector(settle=None)
    subscription = transport.consume("plain.q", got)
    send(transport, b"1", b"2")
    first, second = got.wait_for(2)

    def settle() -> None:
        first.ack()
        first.retry()
        first.ack()
        second.ack()
        second.dead_letter()

    thread = threading.Thread(target=settle)
    thread.start()
    thread.join()
    send(transport, b"3")
    assert got.wait_for(3)[2].body == b"3"
    subscription.cancel()
    again = Collector()
    transport.consume("plain.q", again)
    assert [d.body for d in again.wait_for(1)] == [b"3"]
    assert got.bodies == [b"1", b"2", b"3"]


def test_unsettled_deliveries_go_back_when_the_subscription_is_cancelled(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    got = Collector(settle=None)
    subscription = transport.consume("plain.q", got)
    send(transport, *numbered(5))
    kept = got.wait_for(5)
    kept[1].ack()
    subscription.cancel()
    subscription.cancel()
    kept[0].ack()  # too late: dropped
    again = Collector()
    transport.consume("plain.q", again)
    redelivered = again.wait_for(4)
    assert [d.body for d in redelivered] == [b"0", b"2", b"3", b"4"]
    assert all(d.redelivered for d in redelivered)


def test_acks_at_once_and_out_of_order_leave_what_is_between_them_unsettled(
    broker: Broker, transport: Transport
) -> None:
    broker.apply(one_queue())
    got = Collector(settle=None)
    subscription = transport.consume("plain.q", got)
    send(transport, *numbered(8))
    kept = got.wait_for(8)
    for index in (1, 7, 0, 4, 5):
        kept[index].ack()
    kept[2].dead_letter()
    subscription.cancel()
    again = Collector()
    transport.consume("plain.q", again)
    assert [d.body for d in again.wait_for(2)] == [b"3", b"6"]
    assert transport.depth("plain.q") == 0


def test_unsettled_deliveries_go_back_when_the_transport_is_closed(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    other = broker.open()
    got = Collector(settle=None)
    other.consume("plain.q", got)
    send(transport, b"precious")
    got.wait_for(1)
    other.close()
    again = Collector()
    transport.consume("plain.q", again)
    assert again.wait_for(1)[0].redelivered


def test_cancel_waits_for_the_handler_in_work(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    entered, leave = threading.Event(), threading.Event()
    events: list[str] = []

    def handler(delivery: Delivery) -> None:
        entered.set()
        leave.wait(DEADLINE)
        events.append("handled")
        delivery.ack()

    subscription = transport.consume("plain.q", handler)
    send(transport, b"1")
    assert entered.wait(DEADLINE)
    canceller = threading.Thread(target=lambda: (subscription.cancel(), events.append("cancelled")))
    canceller.start()
    canceller.join(0.1)
    assert canceller.is_alive()
    leave.set()
    canceller.join(DEADLINE)
    assert events == ["handled", "cancelled"]


def test_a_handler_may_cancel_its_own_subscription(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    ready, cancelled = threading.Event(), threading.Event()
    subscriptions = []

    def handler(delivery: Delivery) -> None:
        ready.wait(DEADLINE)
        delivery.ack()
        subscriptions[0].cancel()
        cancelled.set()

    subscriptions.append(transport.consume("plain.q", handler))
    ready.set()
    send(transport, b"1")
    assert cancelled.wait(DEADLINE)
    send(transport, b"2")
    got = Collector()
    transport.consume("plain.q", got)
    assert [d.body for d in got.wait_for(1)] == [b"2"]


def test_a_slow_handler_does_not_hold_up_another_subscription(broker: Broker, transport: Transport) -> None:
    broker.apply(
        Topology(
            exchanges=(Exchange(name="x", type="direct"),),
            queues=(PLAIN, Queue(name="other.q", max_length=64, overflow="drop-head")),
            bindings=(
                Binding(exchange="x", queue="plain.q", key="plain"),
                Binding(exchange="x", queue="other.q", key="other"),
            ),
        )
    )
    leave, slow, fast = threading.Event(), Collector(settle=lambda d: (leave.wait(DEADLINE), d.ack())[1]), Collector()
    transport.consume("plain.q", slow)
    transport.consume("other.q", fast)
    send(transport, b"1", key="plain")
    slow.wait_for(1)
    send(transport, b"2", key="other")
    fast.wait_for(1)
    leave.set()


def test_a_single_active_consumer_hands_over_when_it_ends(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue(Queue(name="in.a", max_length=64, overflow="reject-publish", single_active_consumer=True)))
    first, second = Collector(settle=None), Collector()
    holder, standby = broker.open(), broker.open()
    active = holder.consume("in.a", first, prefetch=2)
    send(transport, *numbered(4))
    first.wait_for(2)
    standby.consume("in.a", second)
    first.deliveries[0].ack()
    first.wait_for(3)
    assert second.bodies == []
    active.cancel()
    second.wait_for(3)
    # What the first one gives back may come after what the queue still held.
    assert sorted(second.bodies) == [b"1", b"2", b"3"]


def test_consumers_of_one_queue_share_its_messages(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    first, second = Collector(settle=None), Collector(settle=None)
    transport.consume("plain.q", first, prefetch=1)
    broker.open().consume("plain.q", second, prefetch=1)
    send(transport, b"1", b"2")
    first.wait_for(1)
    second.wait_for(1)
    assert sorted(first.bodies + second.bodies) == [b"1", b"2"]


def test_consuming_may_begin_before_the_queue_exists(broker: Broker, transport: Transport) -> None:
    got = Collector()
    transport.consume("plain.q", got)
    broker.apply(one_queue())
    send(transport, b"early")
    assert got.wait_for(1)[0].body == b"early"


def test_the_depth_of_a_missing_queue_is_an_error(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    with pytest.raises(TransportError, match=r"ghost\.q"):
        transport.depth("ghost.q")
    assert transport.depth("plain.q") == 0


def test_connection_callbacks_run_off_the_callers_thread_and_survive_errors(
    broker: Broker, transport: Transport
) -> None:
    threads: list[threading.Thread] = []
    called = threading.Event()

    def broken() -> None:
        threads.append(threading.current_thread())
        raise RuntimeError("this callback is broken")

    def callback() -> None:
        threads.append(threading.current_thread())
        called.set()

    transport.on_connected(broken)
    transport.on_connected(callback)
    assert called.wait(DEADLINE)
    assert threading.current_thread() not in threads


def test_close_is_idempotent_and_ends_every_use(broker: Broker, transport: Transport) -> None:
    broker.apply(one_queue())
    other = broker.open()
    got = Collector()
    other.consume("plain.q", got)
    futures = [other.publish("x", "", body) for body in numbered(50)]
    other.close()
    other.close()
    assert [future.exception(0) for future in futures] == [None] * 50
    handled = len(got.bodies)
    assert isinstance(other.publish("x", "", b"late").exception(DEADLINE), TransportError)
    for use in (
        lambda: other.consume("plain.q", got),
        lambda: other.depth("plain.q"),
        lambda: other.declare(one_queue()),
    ):
        with pytest.raises(TransportError, match="closed"):
            use()
    send(transport, b"for others")
    assert len(got.bodies) == handled
