from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.codec import Word
from protocol.errors import ConfigError
from worker.storage.incidents import NO_CASE, Incidents


def test_a_case_is_kept_under_a_number_and_read_again(tmp_path: Path) -> None:
    cases = Incidents(tmp_path / "cases")
    number = cases.keep("training failed", "the whole story\nof Müller")
    assert "the whole story\nof Müller" in cases.text(number)
    (listed,) = cases.all()
    assert listed.number == number
    assert listed.title.endswith("training failed")


def test_a_number_is_a_word_that_tells_nothing(tmp_path: Path) -> None:
    from pydantic import TypeAdapter

    cases = Incidents(tmp_path)
    numbers = {cases.keep("t", f"text {index}") for index in range(20)}
    assert len(numbers) == 20
    assert all(TypeAdapter(Word).validate_python(number) == number for number in (*numbers, NO_CASE))


def test_cases_are_for_their_owners_eyes_only(tmp_path: Path) -> None:
    number = Incidents(tmp_path / "cases").keep("t", "text")
    assert (tmp_path / "cases").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cases" / f"{number}.txt").stat().st_mode & 0o777 == 0o600


def test_the_same_failure_again_is_the_same_case(tmp_path: Path) -> None:
    cases = Incidents(tmp_path)
    first = cases.keep("training from version 1 failed", "text")
    assert cases.keep("training from version 2 failed", "text") == first
    assert cases.keep("training from version 2 failed", "another text") != first
    assert len(cases.all()) == 2


def test_the_oldest_cases_make_room_for_new_ones(tmp_path: Path) -> None:
    cases = Incidents(tmp_path)
    first = cases.keep("t", "first")
    os.utime(tmp_path / f"{first}.txt", (1, 1))
    numbers = [cases.keep("t", f"text {index}") for index in range(100)]
    kept = {case.number for case in cases.all()}
    assert kept == set(numbers)
    with pytest.raises(ConfigError, match="no case"):
        cases.text(first)


def test_a_long_text_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    cases = Incidents(tmp_path)
    text = cases.text(cases.keep("t", "where\n" + "x" * 1_000_000 + "\nwhat"))
    assert len(text) <= 64 * 1024
    assert "where\n" in text
    assert text.rstrip().endswith("what")


def test_a_disk_that_takes_nothing_costs_the_case_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cases = Incidents(tmp_path / "file" / "cases")
    assert cases.keep("t", "text") == NO_CASE
    assert Incidents(tmp_path / "nowhere").all() == []


@pytest.mark.parametrize("number", ["", "-", "../worker", "bcdfghj.txt", "bcdfghj"])
def test_only_a_number_that_is_kept_is_shown(tmp_path: Path, number: str) -> None:
    (tmp_path / "worker.txt").write_text("private")
    (tmp_path / "cases").mkdir()
    with pytest.raises(ConfigError, match="fledge site cases"):
        Incidents(tmp_path / "cases").text(number)
