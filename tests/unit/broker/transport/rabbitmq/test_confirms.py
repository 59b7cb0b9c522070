"""The bookkeeping of pipelined confirms."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from broker.transport.rabbitmq.confirms import Message, Pending
from protocol.errors import NotAllowed, QueueFull, TransportError, Unroutable


def message(body: bytes) -> Message:
    return Message(exchange="x", key="k", body=body, future=Future())


def sent(count: int) -> tuple[Pending, list[Message]]:
    """A channel with `count` messages in flight under the tags 1 to `count`."""
    pending = Pending()
    messages = [message(b"%d" % i) for i in range(count)]
    pending.waiting.extend(messages)
    assert [pending.send_next()[0] for _ in messages] == list(range(1, count + 1))
    return pending, messages


def done(messages: list[Message]) -> list[bool]:
    return [message.future.done() for message in messages]


def test_a_confirm_resolves_its_own_message_only() -> None:
    pending, messages = sent(3)
    pending.confirmed(2, multiple=False, stored=True)
    assert done(messages) == [False, True, False]
    assert messages[1].future.result(0) is None


def test_a_multiple_confirm_resolves_all_up_to_its_tag_that_are_still_open() -> None:
    pending, messages = sent(4)
    pending.confirmed(2, multiple=False, stored=False)
    pending.confirmed(3, multiple=True, stored=True)
    assert done(messages) == [True, True, True, False]
    assert isinstance(messages[1].future.exception(0), QueueFull)
    assert messages[0].future.exception(0) is messages[2].future.exception(0) is None


def test_a_multiple_confirm_of_tag_zero_means_everything() -> None:
    pending, messages = sent(3)
    pending.confirmed(0, multiple=True, stored=True)
    assert done(messages) == [True, True, True]


def test_a_multiple_nack_fails_all_up_to_its_tag() -> None:
    pending, messages = sent(3)
    pending.confirmed(2, multiple=True, stored=False)
    assert [isinstance(m.future.exception(0), QueueFull) for m in messages[:2]] == [True, True]
    assert not messages[2].future.done()


def test_a_returned_message_is_unroutable_once_confirmed_and_not_before() -> None:
    pending, messages = sent(3)
    pending.returned(2)
    assert done(messages) == [False, False, False]
    pending.confirmed(3, multiple=True, stored=True)
    assert isinstance(messages[1].future.exception(0), Unroutable)
    assert messages[0].future.exception(0) is messages[2].future.exception(0) is None


def test_a_confirm_that_nobody_waits_for_is_ignored() -> None:
    pending, messages = sent(1)
    pending.confirmed(7, multiple=False, stored=True)
    assert done(messages) == [False]


def test_a_lost_connection_puts_what_was_in_flight_back_in_front_and_counts_tags_anew() -> None:
    pending, messages = sent(3)
    pending.waiting.append(later := message(b"later"))
    pending.returned(3)
    pending.confirmed(1, multiple=False, stored=True)
    pending.connection_lost()
    assert done(messages) == [True, False, False]
    order = [pending.send_next() for _ in range(3)]
    assert order == [(1, messages[1]), (2, messages[2]), (3, later)]
    pending.confirmed(3, multiple=True, stored=True)
    assert all(m.future.exception(0) is None for m in (*messages, later))


def test_a_refusal_fails_what_was_in_flight_and_leaves_what_waits() -> None:
    pending, messages = sent(2)
    pending.waiting.append(later := message(b"later"))
    pending.refused(NotAllowed("no"))
    assert [isinstance(m.future.exception(0), NotAllowed) for m in messages] == [True, True]
    assert list(pending.waiting) == [later]
    assert pending.send_next()[0] == 1


def test_closing_fails_everything() -> None:
    pending, messages = sent(1)
    pending.waiting.append(later := message(b"later"))
    pending.close(TransportError("closed"))
    for failed in (*messages, later):
        with pytest.raises(TransportError, match="closed"):
            failed.future.result(0)
    assert not pending.waiting
    assert not pending.in_flight
