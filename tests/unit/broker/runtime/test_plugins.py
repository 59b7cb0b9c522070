"""What other packages add: found by entry point, checked by signature, and named when something is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.runtime.plugins import ExtensionPoint
from protocol.errors import ConfigError
from tests.support.packages import install

GROUP = "fledge.sounds"
SOUNDS = ExtensionPoint[str](GROUP, "sound", {"beep": lambda times=1: "beep" * times})
Offer = Callable[..., None]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Installs a package that registers sounds, as `name=module:attribute` of the source it is given."""

    def install_one(package: str, source: str, **sounds: str) -> None:
        install(tmp_path, monkeypatch, package, {package: source}, {GROUP: sounds})

    return install_one


def test_a_built_in_is_made_with_its_parameters() -> None:
    assert SOUNDS.build("beep", {"times": 2}) == "beepbeep"
    assert SOUNDS.names() == ["beep"]


def test_a_package_adds_one_by_an_entry_point(offer: Offer) -> None:
    offer("bells", "def ding(loud=False):\n    return 'DING' if loud else 'ding'\n", ding="bells:ding")
    assert SOUNDS.build("ding", {"loud": True}) == "DING"
    assert SOUNDS.names() == ["beep", "ding"]


def test_what_it_does_to_its_parameters_alters_nothing_that_was_configured(offer: Offer) -> None:
    offer("bells", "def ding(notes, table):\n    table.clear()\n    return notes.pop()\n", ding="bells:ding")
    configured = {"notes": ["c", "e"], "table": {"volume": [1]}}
    assert [SOUNDS.build("ding", configured) for _ in range(2)] == ["e", "e"]
    assert configured == {"notes": ["c", "e"], "table": {"volume": [1]}}


def test_an_unknown_name_lists_everything_there_is(offer: Offer) -> None:
    offer("bells", "", ding="bells:ding")
    with pytest.raises(ConfigError, match="there is no sound called 'dong'; known: beep, ding"):
        SOUNDS.build("dong", {})


def test_a_parameter_it_does_not_take_is_named_with_those_it_takes(offer: Offer) -> None:
    offer("bells", "def ding(loud=False):\n    return 'ding'\n", ding="bells:ding")
    with pytest.raises(ConfigError, match=r"'beep' cannot be set up: time is unknown; did you mean 'times'"):
        SOUNDS.build("beep", {"time": 2})
    with pytest.raises(ConfigError, match=r"ding = bells:ding of the package bells\) cannot .* known: loud"):
        SOUNDS.build("ding", {"pitch": 2})


def test_nobody_takes_the_name_of_a_built_in(offer: Offer) -> None:
    offer("thief", "", beep="thief:beep")
    with pytest.raises(ConfigError, match=r"sound 'beep' is fledge's own, and .* of the package thief registers"):
        SOUNDS.build("beep", {})


def test_a_name_that_two_packages_register_is_nobodys(offer: Offer) -> None:
    offer("bells", "", ding="bells:ding")
    offer("gongs", "", ding="gongs:ding")
    with pytest.raises(ConfigError, match=r"of the package \w+\) is registered by .* of the package \w+ too"):
        SOUNDS.build("ding", {})


@pytest.mark.parametrize(
    ("source", "value", "message"),
    [
        ("", "nowhere:ding", "cannot be loaded: ModuleNotFoundError"),
        ("", "bells:ding", "cannot be loaded: AttributeError"),
        ("1 / 0", "bells:ding", "cannot be loaded: ZeroDivisionError"),
        ("ding = 3", "bells:ding", "is a int; it has to be a class or a function"),
        ("def ding():\n    raise ValueError('rusty')", "bells:ding", "cannot be set up: ValueError: rusty"),
        (
            "from abc import ABC, abstractmethod\n"
            "class Ding(ABC):\n    @abstractmethod\n    def ring(self):\n        'Rings.'\n",
            "bells:Ding",
            "is not complete: it lacks ring",
        ),
    ],
)
def test_what_is_wrong_with_a_package_is_said_with_its_name(
    offer: Offer, source: str, value: str, message: str
) -> None:
    offer("bells", source, ding=value)
    with pytest.raises(ConfigError, match=message) as refused:
        SOUNDS.build("ding", {})
    assert f"ding = {value} of the package bells" in str(refused.value)


def test_errors_of_the_tree_come_through_as_they_are(offer: Offer) -> None:
    source = "from protocol.errors import ConfigError\ndef ding():\n    raise ConfigError('oil the bell')\n"
    offer("bells", source, ding="bells:ding")
    with pytest.raises(ConfigError, match=r"^oil the bell$"):
        SOUNDS.build("ding", {})


@pytest.mark.parametrize("listed", [b"[console_scripts]\nnothing\n", b"[fledge.sounds]\nm\xf6p = bells:ding\n"])
def test_a_package_whose_list_is_broken_takes_nothing_from_others(offer: Offer, tmp_path: Path, listed: bytes) -> None:
    offer("broken", "")
    offer("bells", "def ding():\n    return 'ding'\n", ding="bells:ding")
    (tmp_path / "broken" / "broken-1.0.dist-info" / "entry_points.txt").write_bytes(listed)
    assert SOUNDS.build("beep", {}) == "beep"
    assert SOUNDS.build("ding", {}) == "ding"
    assert SOUNDS.names() == ["beep", "ding"]
    with pytest.raises(
        ConfigError, match="called 'dong'; known: beep, ding; the entry points of the package broken ca"
    ):
        SOUNDS.build("dong", {})


@pytest.mark.parametrize("about", [b"", b"Name: bells\nAuthor: M\xfcller\n"])
def test_a_package_whose_metadata_are_broken_is_told_by_its_place(offer: Offer, tmp_path: Path, about: bytes) -> None:
    offer("bells", "raise RuntimeError('rust')", ding="bells:ding")
    (tmp_path / "bells" / "bells-1.0.dist-info" / "METADATA").write_bytes(about)
    with pytest.raises(ConfigError, match=r"of a package without a name in .*/bells\) cannot be loaded: RuntimeError"):
        SOUNDS.build("ding", {})


def test_a_package_that_is_listed_twice_is_one_package(offer: Offer, tmp_path: Path) -> None:
    offer("bells", "def ding():\n    return 'ding'\n", ding="bells:ding")
    with (tmp_path / "bells" / "bells-1.0.dist-info" / "entry_points.txt").open("a") as listed:
        listed.write("ding = bells:ding\n")
    (tmp_path / "bells" / "bells.egg-info").mkdir()
    assert SOUNDS.build("ding", {}) == "ding"


@pytest.mark.parametrize("source", ["raise SystemExit(3)", "def ding():\n    raise SystemExit(0)\n"])
def test_a_package_cannot_end_the_program(offer: Offer, source: str) -> None:
    offer("bells", source, ding="bells:ding")
    with pytest.raises(ConfigError, match=r"'ding' \(entry point .* cannot be (loaded|set up): SystemExit"):
        SOUNDS.build("ding", {})
