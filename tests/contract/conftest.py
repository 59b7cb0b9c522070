"""Servers that are there on some machines only, and a table of what the contract of all stores met on which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.support.other_stores import KINDS, OtherStore, find

_SUITE = "test_blobs.py::"


@pytest.fixture(scope="session")
def other_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], OtherStore]]:
    """Opens a server of a kind when it is first asked for, one for all tests: take a `bucket` of your own."""
    opened: dict[str, OtherStore] = {}

    def open_one(word: str) -> OtherStore:
        if word not in opened:
            opened[word] = OtherStore(KINDS[word], tmp_path_factory.mktemp(word))
        return opened[word]

    yield open_one
    for store in opened.values():
        store.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers kept the contract, and which were not there."""
    counted: dict[str, Counter[str]] = {word: Counter() for word in KINDS}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            found = report.nodeid.partition(_SUITE)[2].partition("[")[2].partition("]")[0].split("-")
            for word in counted.keys() & found:
                counted[word][outcome] += 1
    if not any(counted.values()):
        return
    terminalreporter.section("the contract of stores on other servers")
    for word, outcomes in counted.items():
        told = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
        there = (
            (told or "not asked for") if find(KINDS[word]) else "not on this machine (scripts/s3-servers.sh gets it)"
        )
        terminalreporter.line(f"{KINDS[word].name:<32} {there}")
