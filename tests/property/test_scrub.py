"""Names planted anywhere in what a site could be asked for are in no answer."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import ConfigError, StateError, Unauthorized
from worker.inspection.inspector import Inspector
from worker.inspection.scrub import LONGEST, free_text, log_line
from worker.inspection.vocabulary import EVENTS, NUMBERS, WORDS

CANARY = "Zyxwvu^Canary"
NAMES = ["Zyxwvu", "Canary"]

words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12).filter(lambda t: "\n" not in t)
pieces = st.lists(words, max_size=3).map("/".join)
names = st.sampled_from([CANARY, "Zyxwvu Canary", "Zyxwvu-Canary", "Zyxwvu's Canary", '"Zyxwvu" (Canary)'])
suffixes = st.sampled_from(
    [".nii", ".nii.gz", ".dcm", ".png", ".jpg", ".csv", ".npz", ".h5", ".mha", ".nrrd", ".NII.GZ", ".json", ".txt"]
)
roots = st.sampled_from(["/", "/data/", "~/", "./", "../", "C:\\", "\\\\pacs\\", "file:///", "s3://key:secret@host/"])
paths = st.builds(lambda root, name, rest: f"{root}{name}/{rest}", roots, names, pieces)
files = st.builds(lambda name, suffix: name + suffix, names, suffixes)
tags = st.builds(
    lambda tag, name: f"{tag} {name}",
    st.sampled_from(["(0010,0010)", "(0010, 0020) LO", "0010|0010", "00100,0010 (0010,0010):", "(0010,0010) PN"]),
    names,
)
keywords = st.builds(
    lambda word, between, name: f"{word}{between}{name}",
    st.sampled_from(
        ["PatientName", "PatientID", "patient_id", "Patient's Name", "AccessionNumber", "StudyInstanceUID", "MRN"]
    ),
    st.sampled_from(["=", ": ", " = '", '="', " [", "="]),
    names,
)
private = st.one_of(paths, files, tags, keywords)
after = st.builds(lambda between, word: between + word, st.sampled_from([" ", "'", '"', ":", ", ", ")", "\t"]), words)
before = st.sampled_from(["", "cannot read ", "error: '", 'open("', "[", "see=", "got ", "a, "])


def clean(text: str) -> bool:
    """Whether none of the planted names is in a text."""
    return not any(name.lower() in text.lower() for name in NAMES)


@given(before, private, after)
@example("x ", "/data/O'Zyxwvu and Canary's", "")
@example("", "Zyxwvu Canary.nii.gz", " is empty")
@example("", "Zyxwvu Canary.nii", "'@0")
@example("", "Zyxwvu Canary.nii", "://x")
@example("", "Zyxwvu MRN Canary.nii", "")
@example("", "Zyxwvu Canary/x", "'@0")
def test_free_text_ends_where_something_private_begins(start: str, planted: str, rest: str) -> None:
    shown = free_text(start + planted + rest)
    assert clean(shown), shown
    assert len(shown) <= LONGEST


@given(st.text(max_size=5000))
def test_free_text_is_short_and_moves_no_cursor(line: str) -> None:
    shown = free_text(line)
    assert len(shown) <= LONGEST
    assert all(each.isprintable() or each == "\t" for each in shown)


@example("SEX00000")
@given(st.from_regex(r"[A-Z]{0,3}[0-9]{5,12}", fullmatch=True))
def test_numbers_that_could_be_somebodys_are_left_out(number: str) -> None:
    # Behind the keyword of a tag (SEX00000) nothing of the line is shown.
    assert free_text(f"accession {number}, next") in ("accession <number>, next", "<tag>")


@given(st.from_regex(r"[a-z0-9_.+:-]{1,20}@[a-z0-9-]{1,20}\.example", fullmatch=True))
def test_addresses_are_left_out(address: str) -> None:
    assert address not in free_text(f"write to {address} soon")


# A word that looks like a run's name, where the name of a run belongs, is one.
unlike = names.filter(lambda name: not name.replace("-", "").isalpha())
anything = st.one_of(private, unlike, st.lists(private, max_size=2), st.dictionaries(files, private, max_size=2))
traceback = st.fixed_dictionaries(
    {
        "exc_type": names,
        "exc_value": private,
        "frames": st.lists(st.fixed_dictionaries({"filename": paths, "name": names, "line": private}), max_size=2),
    }
)
entries = st.fixed_dictionaries(
    {"event": st.sampled_from([*sorted(EVENTS), CANARY, "read /data/Zyxwvu"])},
    optional={
        "level": st.sampled_from(["info", "error", CANARY]),
        "timestamp": st.sampled_from(["2026-11-26T10:00:00Z", CANARY]),
        "error": private,
        "exception": st.lists(traceback, min_size=1, max_size=2),
        "exc_info": private,
        "metric": names,
        "value": names,
        "metrics": st.dictionaries(names, st.floats(allow_nan=False), max_size=2),
        "kind": names,
        "directory": paths,
        "key": paths,
        "Zyxwvu": st.just(1),
        **dict.fromkeys((*sorted(NUMBERS), *sorted(WORDS)), anything),
    },
)


@given(entries)
def test_a_log_line_tells_nothing_that_was_planted_in_it(entry: dict[str, Any]) -> None:
    shown = log_line(json.dumps(entry))
    assert clean(shown), shown
    assert len(shown) <= LONGEST


def answers(looking: Inspector) -> list[str]:
    """Everything that a curious operator can get."""
    found = []
    for order, arguments in (
        ("logs", {"lines": 1024}),
        ("logs", {"grep": "zyxwvu"}),
        ("file.ls", {"options": "-R -a -l"}),
        ("file.ls", {"path": "runs/digits"}),
        ("file.cat", {"path": "worker.log", "options": "-n"}),
        ("file.cat", {"path": "health.json"}),
        ("file.cat", {"path": "settings.json"}),
        ("file.cat", {"path": "runs/digits/notes.txt"}),
        ("file.tail", {"path": "worker.log", "bytes": 5000}),
        ("file.head", {"path": "runs/digits/notes.txt"}),
        ("file.grep", {"path": "worker.log", "pattern": "Zyxwvu"}),
        ("file.env", {}),
        ("file.pwd", {}),
        ("stats", {}),
    ):
        try:
            found.append(str(looking.answer(order, arguments)))
        except (ConfigError, StateError, Unauthorized) as error:
            found.append(str(error))
    return found


@settings(max_examples=30)
@given(st.lists(entries, max_size=4), private, st.lists(files, max_size=3))
def test_no_answer_tells_what_was_planted_in_a_site(log: list[dict[str, Any]], text: str, trained: list[str]) -> None:
    with TemporaryDirectory(prefix="Zyxwvu") as folder:
        state = Path(folder)
        run = state / "runs" / "digits"
        (run / CANARY).mkdir(parents=True)
        (state / "runs" / f"{CANARY}.dcm").mkdir()
        for name in (*trained, "notes.txt"):
            (run / name.replace("/", "-")).write_text(text)
        (state / "worker.log").write_text("".join(f"{json.dumps(entry)}\n" for entry in log) + f"{text}\n")
        for record in ("health.json", "settings.json"):
            (state / record).write_text(json.dumps({"trainer": text, CANARY: 1, "run": text, "federation": text}))
        environment = {"FLEDGE_STORE": text, "FLEDGE_ROOT": CANARY, CANARY: text}
        (state / "statistics.json").write_text(json.dumps({"version": 1, "figures": {"min_cell": 10, text: 1.0}}))
        looking = Inspector(state, log_file=state / "worker.log", environment=environment, statistics=True)
        for answer in answers(looking):
            assert clean(answer), answer
