"""What an operator takes from the federation: models as files, and cards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.ctl.progress import moving
from fledge.ctl.session import Session
from protocol.errors import ConfigError, WrongContext

if TYPE_CHECKING:
    from broker.blobs.base import BlobStore
    from fledge.operator.console import Answer
    from fledge.runs.download import Model
    from protocol.codec import Plain, Value


_DIGITS = 18


def version_of(text: str | None) -> int | str | None:
    """What a person wrote for a version: a number, `best`, `newest`, or nothing.

    Raises:
        ConfigError: it is something else.
    """
    if text is None or text in ("best", "newest"):
        return text
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise ConfigError(f"{text!r} is no version; write its number, best or newest")
    return int(text)


def export(session: Session, out: Path, run: str | None, version: int | str | None, *, raw: bool) -> list[Answer]:
    """Write one version of a run's model to a file, with its card beside it."""
    _check_free(out)
    answers = session.ask("model.export", {"run": run, "version": version, "raw": raw})
    if not answers[0].ok:
        return answers
    with _opened(session, answers[0]) as (model, store):
        if (run or model.run, version if isinstance(version, int) else model.version) != (model.run, model.version):
            raise WrongContext(f"the aggregator sent version {model.version} of {model.run}, which was not asked for")
        if raw and model.card.released:
            raise WrongContext("the aggregator sent the released average; the raw version was asked for")
        return [_saved(answers[0], model, store, out)]


def pull(session: Session, out: Path, name: str) -> list[Answer]:
    """Write a published model, named itself or by a channel, to a file, with its card beside it."""
    _check_free(out)
    answers = session.ask("model.card", {"name": name})
    if not answers[0].ok:
        return answers
    with _opened(session, answers[0]) as (model, store):
        return [_saved(answers[0], model, store, out)]


def card(session: Session, name: str) -> list[Answer]:
    """The signed card of a published model, named itself or by a channel."""
    answers = session.ask("model.card", {"name": name})
    if not answers[0].ok:
        return answers
    with _opened(session, answers[0]) as (model, _):
        return [replace(answers[0], text="", values=_values(model))]


@contextmanager
def _opened(session: Session, answer: Answer) -> Iterator[tuple[Model, BlobStore]]:
    from fledge.runs.download import read_card

    console = session.console
    with console.store() as store:
        record = str(answer.values.get("record", ""))
        model = read_card(store, record, console.identity, console.registry, console.federation)
        if (named := answer.values.get("name")) is not None and named != model.card.name:
            raise WrongContext(f"the card of {named} is that of {model.card.name}; have it published again")
        yield model, store


def _saved(answer: Answer, model: Model, store: BlobStore, out: Path) -> Answer:
    from fledge.runs.download import CARD, save

    with moving(f"getting {model.run} version {model.version}", model.manifest.length) as progress:
        size = save(model, store, out, progress)
    facts: dict[str, Value] = {"run": model.run, "version": model.version, "released": model.card.released}
    files: dict[str, Value] = {"file": str(out), "card": f"{out}{CARD}", "bytes": size, "sha256": model.digest}
    why: dict[str, Value] = {name: answer.values[name] for name in ("chosen",) if name in answer.values}
    return replace(answer, text="", values=facts | why | files)


def _values(model: Model) -> dict[str, Value]:
    """A card as an answer holds it: single values, and what sites measured as a table."""
    values: dict[str, Value] = {key: _plain(value) for key, value in model.facts().items() if key != "measurements"}
    rows = [(m.site, m.examples, name, value) for m in model.card.measurements for name, value in m.metrics.items()]
    for at, column in enumerate(("site", "examples", "metric", "value")):
        values[column] = tuple(row[at] for row in rows)
    return values


def _plain(value: object) -> Plain:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value if isinstance(value, bool | int | float | str) else str(value)


def _check_free(out: Path) -> None:
    """Before anything is asked for: a name that cannot be written costs a download otherwise."""
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another name or remove it")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it or choose another one")
