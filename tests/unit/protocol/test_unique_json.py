"""JSON of others' files: read as it is, unless a name stands in a table twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.unique_json import SaidTwice, loads

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=4), each, max_size=3),
    max_leaves=8,
)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_what_is_said_once_is_read(value: Any) -> None:
    assert loads(json.dumps(value)) == value


@given(VALUES, VALUES, st.text(max_size=4), st.booleans(), st.sampled_from(["%s", "[1, %s]", '{"other": [%s]}']))
@settings(max_examples=60, deadline=None)
def test_what_is_said_twice_is_refused_wherever_it_stands(
    one: Any, other: Any, name: str, escaped: bool, around: str
) -> None:
    names = json.dumps(name), "".join(f"\\u{ord(char):04x}" for char in name) if name.isascii() else name
    second = f'"{names[1]}"' if escaped and name.isascii() else names[0]
    with pytest.raises(SaidTwice) as found:
        loads(around % f"{{{names[0]}: {json.dumps(one)}, {second}: {json.dumps(other)}}}")
    assert found.value.name == name


def test_many_names_are_looked_at_once_each() -> None:
    names = [f'"{number}": 0' for number in range(200_000)]
    with pytest.raises(SaidTwice, match="'199999'"):
        loads(f"{{{', '.join([*names, names[-1]])}}}")
