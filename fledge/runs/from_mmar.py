"""A run made of a Clara MMAR: translated to a bundle, with the settings that its federated configuration has."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from aggregator.config import RunConfig
from fledge.process.terminal import clean
from protocol.errors import ConfigError
from worker.mmar.entries import Note, NoteKind


@dataclass(frozen=True)
class Translated:
    """An MMAR as what a run is made of."""

    bundle: Path
    weights: Path | None
    """Trained weights that the MMAR brings."""
    settings: RunConfig | None
    """What it says about a run; None if it says nothing."""


@contextmanager
def translated(mmar: Path, run: str, settings: RunConfig | None, tell: Callable[[str], None]) -> Iterator[Translated]:
    """An MMAR as a bundle in a folder that lasts as long as the block.

    Args:
        run: the run's name.
        settings: are taken instead of those of the MMAR.

    Raises:
        ConfigError: it is no MMAR, has parts without an equal, or settings that no run can have.
    """
    from worker.mmar.convert import convert, write
    from worker.mmar.federated import settings as federated
    from worker.mmar.read import pretrained, read_mmar
    from worker.pipeline.code_loader import forget_code
    from worker.trainers.mmar import Installed

    read = read_mmar(mmar)
    converted = convert(read, Installed())
    found = federated(read.server, read.client)
    weights, missing = pretrained(mmar, read)
    for line in lines([*converted.notes, *found.notes, *missing]):
        tell(line)
    if weights is not None:
        tell(f"version 0 has the weights in {weights}")
    tell(f"each site adds to its worker.toml:\n{found.worker_toml(run)}")
    config = settings or (None if read.server is None and read.client is None else run_config(found.run, run))
    with tempfile.TemporaryDirectory(prefix="fledge-mmar-") as scratch:
        above = Path(scratch).resolve()
        folder = above / "bundle"
        write(converted, folder)
        try:
            yield Translated(folder, weights, config)
        finally:
            forget_code(above)


def run_config(settings: Mapping[str, object], run: str) -> RunConfig:
    """A run's settings from those of an MMAR.

    Raises:
        ConfigError: no run can have them.
    """
    try:
        return RunConfig.model_validate({**settings, "name": run})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"the MMAR's federated configuration: {place}: {first['msg']}; correct it there") from error


def lines(notes: Iterable[Note]) -> Iterator[str]:
    """What a conversion tells, ordered by what people have to do about it."""
    told = list(notes)
    for kind in (NoteKind.MAPPED, NoteKind.LEFT_OUT, NoteKind.TO_SET):
        for note in told:
            if note.kind is kind:
                yield clean(f"{kind}: {note.what}{' → ' if kind is NoteKind.MAPPED else ': '}{note.why}")
