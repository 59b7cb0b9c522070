"""`{NAME}` in an MMAR: always ends, never evaluates, and says which name is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError
from worker.mmar.variables import Variables

NAMES = ["A", "B", "C", "D"]
PATTERN = r"\{([A-Za-z_]\w*)\}"
TEXTS = st.lists(
    st.sampled_from(["{A}", "{B}", "{C}", "{D}", "x", "{", "}", "$", "#", "@", "__import__('os')", "{A.__class__}"])
).map("".join)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{epochs}", 5),
        ("{rate}", 0.1),
        ("{on}", True),
        ("{sizes}", [96, 96]),
        ("{root}/list.json", "/data/list.json"),
        ("{both}", "/data and 5"),
        ({"a": ["{epochs}", {"b": "x{epochs}"}], "c": None}, {"a": [5, {"b": "x5"}], "c": None}),
        ("lambda x: {0}, {'a': 1}, {}", "lambda x: {0}, {'a': 1}, {}"),
        ("{epochs", "{epochs"),
    ],
)
def test_names_are_replaced_and_a_lone_name_keeps_its_type(value: Any, expected: Any) -> None:
    known = {"epochs": 5, "rate": 0.1, "on": True, "sizes": [96, 96], "root": "/data", "both": "{root} and {epochs}"}
    found = Variables(known).put_in(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("values", "value", "text"),
    [
        ({}, "{NAME}", "{NAME} stands for nothing; set NAME in environment.json"),
        ({"A": "{A}"}, "{A}", r"{A} stands for itself \(A → A\)"),
        ({"A": "{B}", "B": "x{C}", "C": "{A}"}, "y{B}", r"{B} stands for itself \(B → C → A → B\)"),
        ({"A": {"not": "a value"}}, "{A}", "{A} stands for nothing"),
        ({"A": "x" * 60_000}, "{A}{A}", "becomes longer than 65536"),
        ({"A": "x" * 60_000}, ["y{A}"] * 100, "the configuration becomes longer than"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Variables(values).put_in(value)


def test_a_value_that_doubles_with_every_name_is_refused_at_once() -> None:
    values = {f"n{index}": f"{{n{index + 1}}}{{n{index + 1}}}" for index in range(100)} | {"n100": "x"}
    with pytest.raises(ConfigError, match="longer than"):
        Variables(values).put_in("{n0}")


def reached(values: dict[str, str], text: str) -> set[str]:
    """The names that a text needs, itself or by others."""
    needed = set(re.findall(PATTERN, text))
    seen: set[str] = set()
    while needed - seen:
        name = (needed - seen).pop()
        seen.add(name)
        needed |= set(re.findall(PATTERN, values.get(name, "")))
    return seen


def replaced(values: dict[str, str], text: str) -> str:
    return re.sub(PATTERN, lambda found: replaced(values, values[found[1]]), text)


@given(st.dictionaries(st.sampled_from(NAMES), TEXTS), TEXTS)
def test_any_text_ends_either_replaced_or_with_a_name_that_stands_for_nothing_or_itself(
    values: dict[str, str], text: str
) -> None:
    needed = reached(values, text)
    circular = any(name in reached(values, values.get(name, "")) for name in needed)
    if circular or needed - values.keys():
        with pytest.raises(ConfigError, match="stands for"):
            Variables(values).put_in(text)
    else:
        assert Variables(values).put_in(text) == replaced(values, text)
