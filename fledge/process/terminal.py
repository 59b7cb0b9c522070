"""Text from elsewhere made safe for a terminal."""

from __future__ import annotations


def clean(text: str, *, keep: str = "") -> str:
    """The text with everything escaped that could steer a terminal: control and format characters, surrogates."""
    return "".join(each if each.isprintable() or each in keep else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def line(text: str) -> str:
    """A line of another machine's file or log: tabs stay, everything else that is not printable is escaped."""
    return clean(text, keep="\t")
