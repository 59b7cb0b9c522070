from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console as Screen

from fledge.ctl import render
from fledge.operator.console import Answer
from fledge.process import terminal
from tests.support.operator_hub import refused, silent


def said(text: str = "", **values: Any) -> Answer:
    """A yes of the aggregator."""
    return Answer(sender="aggregator", ok=True, reason="ok", text=text, values=values)


def drawn(answer: Answer, *, headed: bool = False) -> str:
    """An answer as it stands on paper."""
    out = io.StringIO()
    for part in render.people(answer, headed=headed):
        Screen(file=out, width=120, markup=False, highlight=False, emoji=False).print(part)
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ütf-8 and 漢字", "plain, ütf-8 and 漢字"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("\u202eright to left", "\\u202eright to left"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_nothing_that_steers_a_terminal_gets_through(text: str, shown: str) -> None:
    assert terminal.clean(text) == shown
    for answer in (
        said(text),
        said(value=text),
        said(value=(text,)),
        said(lines=(text,)),
        said(**{text: ("x",)}),
        Answer(sender=text, ok=False, reason=text, text=text, values={}),
        Answer(sender=text, ok=True, reason="ok", text="", values={"digest": (text,), "at": text, "seen": text}),
    ):
        for headed in (True, False):
            assert all(each.isprintable() or each in "\n\t" for each in drawn(answer, headed=headed)), answer
    assert all(each.isprintable() for each in render.as_json([said(text, value=text)]))


def test_markup_in_an_answer_is_just_text() -> None:
    assert drawn(said("[red]x[/red] :warning:")) == "[red]x[/red] :warning:\n"
    assert "[bold]" in drawn(said(value=("[bold]",)))


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("seen", -1.0, "never"),
        ("seen", 0.4, "0 s ago"),
        ("seen", 119, "119 s ago"),
        ("seen", 120, "2 min ago"),
        ("seen", 7300.0, "2 h ago"),
        ("seen", 500_000, "5 d ago"),
        ("seen", None, "-"),
        ("at", 86400.0, "1970-01-02 00:00:00Z"),
        ("at", 1e300, "1e+300"),
        ("progress", 0.256, "26%"),
        ("digest", "abcdef0123456789", "abcdef012345"),
        ("hash", b"\xab" * 32, "abababababab"),
        ("norm", 1.23456789, "1.2346"),
        ("value", float("nan"), "nan"),
        ("number", 12345678, "12345678"),
        ("version", -1, "-"),
        ("version", 12, "12"),
        ("size", 99_999, "99999"),
        ("bytes", 840_000_000, "840 MB"),
        ("size", "?", "?"),
        ("certificate", -1.0, "-"),
        ("certificate", 300.25, "300.25"),
        ("certificate", "soon", "soon"),
        ("taken", True, "yes"),
        ("taken", False, "no"),
        ("reason", "", "-"),
    ],
)
def test_a_value_is_shown_as_its_column_means_it(column: str, value: Any, shown: str) -> None:
    assert render.shown(column, value) == shown


def test_an_answer_is_single_values_a_table_and_lines() -> None:
    found = render.parts({"run": "digits", "site": ("north", "south"), "seen": (1, 2), "lines": ("x",), "next": 4})
    assert found.scalars == {"run": "digits"}
    assert found.lines == ("x",)
    assert found.rows() == [{"site": "north", "seen": 1}, {"site": "south", "seen": 2}]


def test_columns_that_do_not_fit_together_do_not_hide_anything() -> None:
    assert render.parts({"a": (1, 2, 3), "b": (4,)}).columns == {"a": [1, 2, 3], "b": [4, None, None]}
    assert "3" in drawn(said(a=(1, 2, 3), b=(4,)))


def test_a_table_is_drawn_with_every_cell_in_full() -> None:
    text = drawn(said(run="digits", site=("north", "south"), note=("x" * 300, "")))
    assert text.count("x") == 300
    lines = text.splitlines()
    assert lines[0].split() == ["run", "digits"]
    assert lines[1].split() == ["site", "note"]
    assert lines[-1].split() == ["south", "-"]


@pytest.mark.parametrize(
    ("answer", "headed", "shown"),
    [
        (said(), False, "done\n"),
        (said(), True, "aggregator\ndone\n"),
        (said("paused"), False, "paused\n"),
        (said("paused"), True, "aggregator: paused\n"),
        (said(site=()), False, "nothing\n"),
        (said(lines=("a", "b"), next=3), True, "aggregator\na\nb\n"),
        (said("2 lines", lines=("a", "b"), next=3), False, "a\nb\n"),
        (said("0 lines", lines=(), next=3), False, "0 lines\n"),
        (refused("unknown_run", "there is no such run"), False, "aggregator: there is no such run (unknown_run)\n"),
        (refused("run_away", ""), False, "aggregator: refused (run_away)\n"),
        (Answer(sender="north", ok=False, reason="busy", text="", values={}), True, "north: refused (busy)\n"),
    ],
)
def test_short_answers(answer: Answer, headed: bool, shown: str) -> None:
    assert drawn(answer, headed=headed) == shown


def test_json_holds_everything_in_one_object() -> None:
    found = json.loads(render.as_json([said("x", site=("north",), digest=b"\1\2"), silent("south")]))
    assert found == {
        "answers": [
            {
                "sender": "aggregator",
                "ok": True,
                "reason": "ok",
                "text": "x",
                "values": {"site": ["north"], "digest": "0102"},
            },
            {"sender": "south", "ok": False, "reason": "no_answer", "text": silent("south").text, "values": {}},
        ]
    }


def test_exit_codes_follow_from_the_answers() -> None:
    assert render.exit_code([]) == 0
    assert render.exit_code([said(), said()]) == 0
    assert render.exit_code([said(), refused()]) == 1
    assert render.exit_code([said(), silent("north")]) == 4
    assert render.exit_code([silent("north"), refused()]) == 1
