"""Documents keep their form: width, readers, decisions and their index, the picture, and links that lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.support.house import ROOMS, repository_files

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100
OURS = ("docs/", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "protocol/SPEC.md", "benchmarks/")
PAGES = sorted(name for name in repository_files() if name.endswith(".md") and name.startswith(OURS))
LINKED = sorted(
    {*PAGES, *(name for name in repository_files() if name.endswith(".md") and not name.startswith("deploy/"))}
)
DECISIONS = [name for name in PAGES if re.fullmatch(r"docs/adr/\d{3}-[\w-]+\.md", name)]
INDEX = "docs/adr/README.md"
HEAD = re.compile(
    r"# (\d{3}) (.+)\n\n\*\*Status:\*\* (accepted|replaced by \d{3}) · \*\*Date:\*\* (\d{4}-\d\d-\d\d)\n\n"
)
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`]+`", lambda code: "`" + "x" * (len(code[0]) - 2) + "`", FENCE.sub("", read(name)))


def anchors(name: str) -> set[str]:
    """What a link may have behind its `#`: headings in lower case, without punctuation, with hyphens for spaces."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", read(name)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_lines_are_at_most_a_hundred_columns_wide(name: str) -> None:
    lines = FENCE.sub("", read(name)).splitlines()
    assert [line for line in lines if len(line) > WIDTH and not line.startswith(("|", "!["))] == []


@pytest.mark.parametrize("name", sorted({*PAGES} - {*DECISIONS, "CHANGELOG.md"}))
def test_a_page_says_in_its_first_lines_for_whom_it_is(name: str) -> None:
    assert re.search(r"^\*For [^*]+\.\*$", "\n".join(read(name).splitlines()[:14]), re.MULTILINE)


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    for link in LINK.findall(prose(name)):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.is_file(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), f"{name}: {link}"


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_begins_with_number_title_status_and_date(name: str) -> None:
    head = HEAD.match(read(name))
    assert head is not None
    assert Path(name).name.startswith(f"{head[1]}-")


def test_the_index_has_a_row_for_each_decision() -> None:
    rows = [row.split(" | ") for row in read(INDEX).splitlines() if row.startswith("| [")]
    heads = [(match, Path(name).name) for name in DECISIONS if (match := HEAD.match(read(name)))]
    assert [row[:4] for row in rows] == [[f"| [{head[1]}]({name})", head[2], head[3], head[4]] for head, name in heads]
    assert all(len(row) == 5 and row[4].strip("| ") for row in rows)


def test_the_index_explains_every_number_that_is_missing() -> None:
    numbers = [int(Path(name).name[:3]) for name in DECISIONS]
    [text] = re.findall(r"numbers between them \((.*?)\)\s+were never used", read(INDEX), re.DOTALL)
    ends = [(int(first), int(last or first)) for first, last in re.findall(r"\b(\d{3})(?:\s+to\s+(\d{3}))?", text)]
    explained = {number for first, last in ends for number in range(first, last + 1)}
    assert {*range(1, max(numbers))} - {*numbers} == explained


def test_the_page_on_architecture_names_every_room() -> None:
    text = read("docs/architecture.md")
    for package, rows in ROOMS.items():
        for room in sorted({room for row in rows for room in row} - {"__init__"}):
            assert re.search(rf"`(?:{package}/)?{room}(?:\.py)?`", text), f"{package}/{room}"


def test_every_page_has_its_place_in_the_site() -> None:
    listed = set(re.findall(r"^ +- (?:\w+: )?([\w/-]+\.md)$", read("mkdocs.yml"), re.MULTILINE))
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
    assert pages - {name.removeprefix("docs/") for name in DECISIONS} <= listed


def test_the_picture_is_the_one_that_its_script_draws() -> None:
    assert runpy.run_path(str(ROOT / "docs/architecture_svg.py"))["picture"]() == read("docs/architecture.svg")
