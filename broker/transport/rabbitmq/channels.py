"""What happens on the channels of a link: publishing, consuming, asking. Everything runs on the link's thread.

Each exchange has a channel of its own to publish on and each subscription one to consume on. A broker refuses by
closing the channel, without saying which message was at fault; so a refusal concerns exactly one exchange or queue.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import structlog

from broker.net.backoff import full_jitter
from broker.transport.base import Delivery, Settlement, Verb
from broker.transport.dispatch import HandlerLane
from broker.transport.rabbitmq.confirms import Pending
from broker.transport.rabbitmq.connection import (
    Basic,
    BasicProperties,
    Channel,
    Link,
    Method,
    channel_alone_closed,
    persistent,
    refusal,
)
from protocol import limits
from protocol.errors import TransportError

log = structlog.get_logger()

_WINDOW = 256
"""Unconfirmed messages per exchange; at 256 KiB each they bound pika's write buffer to 64 MiB."""
_CONSUME_CAP = 10.0
"""Longest wait in seconds until a queue that went away, or was forbidden, is tried again."""
_CANCEL_GRACE = 5.0


class Outlet:
    """Publishes to one exchange; lives on the publishing link's thread."""

    def __init__(self, link: Link, exchange: str, dice: random.Random) -> None:
        self.pending = Pending()
        self._link = link
        self._exchange = exchange
        self._channel: Channel | None = None
        self._dice = dice
        self._rests = full_jitter(self._dice)
        self._resting = False

    def pump(self) -> None:
        """Send what waits, as far as the window reaches."""
        if not self._link.up or self._resting or not self.pending.waiting:
            return
        if self._channel is None:
            self._channel = self._link.channel(self._on_open, self._on_closed)
            return
        while self._channel.is_open and self.pending.waiting and len(self.pending.in_flight) < _WINDOW:
            tag, message = self.pending.send_next()
            # By the message id a returned message is told from its neighbours; nothing else reads it.
            properties = persistent(message_id=str(tag))
            self._channel.basic_publish(self._exchange, message.key, message.body, properties, mandatory=True)

    def down(self) -> None:
        """The connection is gone."""
        self._channel = None
        self._resting = False
        self.pending.connection_lost()

    def _on_open(self, channel: Channel) -> None:
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm)
        self.pump()

    def _on_return(self, channel: Channel, _: Basic.Return, properties: BasicProperties, __: bytes) -> None:
        if channel is self._channel and properties.message_id is not None:
            self.pending.returned(int(properties.message_id))

    def _on_confirm(self, frame: Method) -> None:
        method = frame.method
        self._rests = full_jitter(self._dice)
        self._link.progress()
        stored = isinstance(method, Basic.Ack)
        self.pending.confirmed(method.delivery_tag, multiple=method.multiple, stored=stored)
        self.pump()

    def _on_closed(self, channel: Channel, reason: BaseException) -> None:
        if channel != self._channel or self._link.closing or not channel_alone_closed(reason):
            return
        self._channel = None
        self._resting = True
        seconds = next(self._rests)
        log.warning("publish.refused", exchange=self._exchange, reason=str(reason), again_in_s=round(seconds, 2))
        self.pending.refused(refusal(f"publishing to exchange {self._exchange}", reason))
        # The rest is what keeps a publisher that tries again at once from turning a refusal into a hot loop.
        self._link.later(seconds, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self.pump()


class Inlet:
    """One subscription: a channel on the consuming link, and a thread for its handler."""

    def __init__(
        self,
        link: Link,
        queue: str,
        lane: HandlerLane,
        *,
        prefetch: int,
        dice: random.Random,
        forget: Callable[[Inlet], None],
    ) -> None:
        self.lane = lane
        self.queue = queue
        self._link = link
        self._prefetch = prefetch
        self._forget = forget
        self._channel: Channel | None = None
        self._unsettled: set[int] = set()
        self._settled: deque[tuple[Channel, int, Verb]] = deque()
        """What was settled and not told the broker yet."""
        self._dice = dice
        self._waits = full_jitter(dice, cap=_CONSUME_CAP)
        self._cancelled = False
        self._gone = threading.Event()

    def cancel(self) -> None:
        """Stop; see `Subscription`. From any thread."""
        self.lane.stop()
        self._link.call(self._leave)
        # The broker gives back what is unsettled when it closes the channel. A broker that does not answer has either
        # lost the connection, and thereby done it, or will do it when it is back.
        self._gone.wait(_CANCEL_GRACE)
        self._forget(self)

    def open(self) -> None:
        """Consume, if that is possible now and not under way."""
        if not self._link.up or self._channel is not None or self._cancelled:
            return
        self._channel = self._link.channel(self._on_open, self._on_closed)

    def down(self) -> None:
        """The connection is gone, and with it the channel and everything unsettled."""
        self._channel = None
        self._unsettled.clear()
        if self._cancelled:
            self._gone.set()

    def settle(self, channel: Channel, tag: int, verb: Verb) -> None:
        """Settle a delivery if it still stands. From any thread."""
        self._settled.append((channel, tag, verb))
        self._link.call(self._settle)

    def _settle(self) -> None:
        """Tell the broker of all that was settled meanwhile; acks of neighbours are one."""
        acked: set[int] = set()
        while self._settled:
            channel, tag, verb = self._settled.popleft()
            # Tags count per channel: on another one than its own a tag would settle a stranger, or close the channel.
            if channel != self._channel or not channel.is_open or tag not in self._unsettled:
                continue
            self._unsettled.remove(tag)
            if verb == "ack":
                acked.add(tag)
            else:
                # Rejects count towards the delivery limit on every version of RabbitMQ; from 4.3 on nacks do not.
                channel.basic_reject(tag, requeue=verb == "retry")
        if self._channel is None or not acked:
            return
        oldest = min(self._unsettled, default=max(acked) + 1)
        if together := [tag for tag in acked if tag < oldest]:
            self._channel.basic_ack(max(together), multiple=True)
        for tag in sorted(acked.difference(together)):
            self._channel.basic_ack(tag)

    def _leave(self) -> None:
        self._cancelled = True
        if self._channel is None:
            self._gone.set()
        elif not self._channel.is_closing:
            self._channel.close()

    def _on_open(self, channel: Channel) -> None:
        channel.add_on_cancel_callback(lambda _: self._on_cancelled(channel))
        channel.basic_qos(prefetch_count=self._prefetch)
        channel.basic_consume(self.queue, self._on_message, callback=self._on_consuming)

    def _on_consuming(self, _: Method) -> None:
        self._waits = full_jitter(self._dice, cap=_CONSUME_CAP)
        self._link.progress()

    def _on_message(self, channel: Channel, method: Basic.Deliver, _: BasicProperties, body: bytes) -> None:
        if channel != self._channel:
            return
        if len(body) > limits.MESSAGE:
            log.warning("message.oversize", queue=self.queue, bytes=len(body), limit=limits.MESSAGE)
            channel.basic_reject(method.delivery_tag, requeue=False)
            return
        self._unsettled.add(method.delivery_tag)
        settle = _Settle(self, channel, method.delivery_tag)
        self.lane.put(Delivery(queue=self.queue, body=body, redelivered=bool(method.redelivered), settle=settle))

    def _on_cancelled(self, channel: Channel) -> None:
        """The broker ended the consumer (queue deleted or moved); its channel stays open and would be silent."""
        log.warning("consume.cancelled_by_broker", queue=self.queue)
        if channel.is_open:
            channel.close()

    def _on_closed(self, channel: Channel, reason: BaseException) -> None:
        if channel != self._channel or not channel_alone_closed(reason):
            return
        self._channel = None
        self._unsettled.clear()
        if self._cancelled or self._link.closing:
            self._gone.set()
            return
        seconds = next(self._waits)
        log.warning("consume.lost", queue=self.queue, reason=str(reason), again_in_s=round(seconds, 2))
        self._link.later(seconds, self.open)


@dataclass(frozen=True, slots=True)
class _Settle(Settlement):
    """Settles one delivery on the channel it came from."""

    inlet: Inlet
    channel: Channel
    tag: int

    def __call__(self, verb: Verb) -> None:
        self.inlet.settle(self.channel, self.tag, verb)


Ask = Callable[[Channel, Callable[[Method], None]], None]
"""`ask(channel, done)` sends requests and has `done` called with the broker's answer."""


class Question:
    """Something asked on a channel of its own; asked again on the next connection when one breaks under it."""

    def __init__(self, what: str, ask: Ask) -> None:
        self.answer: Future[Method] = Future()
        self._what = what
        self._ask = ask

    def put(self, link: Link) -> None:
        """Ask, if there is a connection."""
        if link.up and not self.answer.done():
            link.channel(lambda opened: self._ask(opened, self._done(opened)), self._on_closed)

    def fail(self, error: TransportError) -> None:
        """Answer with an error, unless there is an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def _done(self, channel: Channel) -> Callable[[Method], None]:
        def done(answer: Method) -> None:
            if not self.answer.done():
                self.answer.set_result(answer)
            if channel.is_open:
                channel.close()

        return done

    def _on_closed(self, _: Channel, reason: BaseException) -> None:
        if channel_alone_closed(reason):
            self.fail(refusal(self._what, reason))
