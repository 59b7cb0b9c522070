from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import StateError
from worker.journal.approvals import Approvals


def test_an_answer_waits_until_it_is_in_the_journal(tmp_path: Path) -> None:
    Approvals(tmp_path / "approvals").say("heart.1", True)
    answers = Approvals(tmp_path / "approvals")
    assert answers.take() == {"heart.1": True}
    assert Approvals(tmp_path / "approvals").take() == {"heart.1": True}  # another process, after a crash
    answers.noted("heart.1")
    answers.noted("heart.1")
    assert answers.take() == {}
    assert list((tmp_path / "approvals").iterdir()) == []


def test_the_last_word_counts_and_is_not_lost_with_the_one_before(tmp_path: Path) -> None:
    answers = Approvals(tmp_path)
    answers.say("r", True)
    assert answers.take() == {"r": True}
    answers.say("r", False)
    assert answers.peek() == {"r": False}
    assert answers.take() == {"r": True}
    answers.noted("r")
    assert answers.take() == {"r": False}


def test_a_second_answer_before_anybody_looked_replaces_the_first(tmp_path: Path) -> None:
    answers = Approvals(tmp_path)
    answers.say("r", True)
    answers.say("r", False)
    assert answers.take() == {"r": False}


def test_whatever_else_lies_there_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.said").write_text("perhaps")
    (tmp_path / "r.new").write_text("approved")
    (tmp_path / "a b.said").write_text("approved")
    (tmp_path / "readme").write_text("approved")
    (tmp_path / "d.said").mkdir()
    answers = Approvals(tmp_path)
    assert answers.take() == {}
    answers.say("r", True)
    assert answers.take() == {"r": True}
    assert Approvals(tmp_path / "nowhere").take() == {}


def test_any_run_can_be_answered_even_one_that_is_called_dot(tmp_path: Path) -> None:
    answers = Approvals(tmp_path / "approvals")
    for run in (".", "..", "a.said", "x:y+z"):
        answers.say(run, True)
    assert answers.take() == {".": True, "..": True, "a.said": True, "x:y+z": True}
    assert [path.name for path in tmp_path.iterdir()] == ["approvals"]


def test_an_answer_that_cannot_be_left_is_told_to_whoever_gave_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="user that the worker runs as"):
        Approvals(tmp_path / "file").say("r", True)
