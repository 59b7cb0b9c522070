"""Settings in TOML files, read into models; what is wrong is said in one sentence that never repeats the value."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from protocol.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
Place = tuple[int | str, ...]
_LIMIT = 1024**2
_CLOSE = 0.6
_HINTS = {
    **dict.fromkeys(("string_type", "path_type"), "put it in quotes"),
    "string_pattern_mismatch": "use letters, digits and . _ : + - only",
    "string_too_short": "it must not be empty",
    "string_too_long": "at most {max_length} characters",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "write a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "write a number"),
    "finite_number": "write a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "write true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "write a list: [a, b]"),
    **dict.fromkeys(("dict_type", "model_type"), "write a table of keys and values"),
    "literal_error": "write {expected}",
    "greater_than": "write a number above {gt:g}",
    "greater_than_equal": "write a number of at least {ge:g}",
    "less_than": "write a number below {lt:g}",
    "less_than_equal": "write a number of at most {le:g}",
    "too_short": "at least {min_length} needed",
    "too_long": "at most {max_length} allowed",
    "value_error": "{error}",
}
_ANY = "write a text, a number, true or false, or a list of them"


class TlsConfig(BaseModel):
    """Whom to trust on the line, and the certificate to show; paths are relative to the file that names them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ca: Path
    cert: Path
    key: Path


def read_toml(path: Path, kind: type[M], instead: Mapping[str, str] | None = None) -> M:
    """Read and check a file of settings; what `instead` holds comes before the file's keys of that name.

    Raises:
        ConfigError: it is missing, not TOML, or a value is wrong; says which, never the value.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; is the path right?") from error
    if len(raw) > _LIMIT:
        raise ConfigError(f"{path}: longer than {_LIMIT} bytes; is it the right file?")
    return parse_toml(raw, path, kind, instead)


def given_urls(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What comes before the URLs of a file: FLEDGE_BROKER and FLEDGE_STORE, by the keys they stand for."""
    given = {key: environment.get(f"FLEDGE_{key.upper()}", "") for key in ("broker", "store")}
    return {key: value for key, value in given.items() if value}


def parse_toml(raw: bytes, source: Path | str, kind: type[M], instead: Mapping[str, str] | None = None) -> M:
    """Check settings that were read already; `source` says in errors where from.

    Raises:
        ConfigError: they are not TOML, or a value is wrong; says which, never the value.
    """
    table = parse_table(raw, source) | dict(instead or {})
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, kind, table)}") from None


def parse_table(raw: bytes, source: Path | str) -> dict[str, object]:
    """TOML as plain values.

    Raises:
        ConfigError: it is none.
    """
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: not text in UTF-8 ({error.reason})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None


def explain(error: ValidationError, kind: type[BaseModel], table: object, *, shown: bool = False) -> str:
    """The first thing that is wrong, as one sentence; with `shown` it repeats a value that will not do."""
    errors = error.errors(include_url=False)
    # A key that is written wrong is unknown, and often missing under its right name.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place: Place = first["loc"]
    if first["type"] == "extra_forbidden":
        beside, _ = _at(place[:-1], kind)
        known = beside.model_fields if _is_model(beside) else ()
        return f"{_words(place, table)}{nearest(str(place[-1]), known)}"
    if first["type"] == "missing":
        return f"{_words(place, table)} is missing{_example(place, kind, '; write it as {}')}"
    real = _real(place, table)
    where = _words(real, table)
    if place[len(real) :] == ("[key]",):  # the name is wrong, not what stands there
        return f"{where}: this name will not do; {_HINTS['string_pattern_mismatch']}"
    hint = _ANY  # if none of several kinds fitted
    if len(real) == len(place):
        hint = _hint(first["type"], first.get("ctx", {}), real, kind)
    if not shown or len(real) < len(place):
        return f"{where}: {hint}"
    value = repr(first["input"]) if isinstance(first["input"], bool | int | float | str) else "what stands there"
    return f"{where}: {value} will not do; {hint}"


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the one that was meant, or all that there are."""
    listed = list(words)
    close = difflib.get_close_matches(word, listed, n=1, cutoff=_CLOSE)
    return f" is unknown; did you mean {close[0]!r}?" if close else f" is unknown; known: {', '.join(listed) or 'none'}"


def misfit(error: TypeError, taken: Iterable[str], given: Iterable[str]) -> str:
    """What to say where something that is set up by keywords was given others than it takes."""
    known = list(taken)
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return f"{error}; it takes {', '.join(known) or 'no parameters'}"
    return unknown + nearest(unknown, known)


def _hint(wrong: str, context: Mapping[str, object], place: Place, kind: type[BaseModel]) -> str:
    if wrong not in ("extra_forbidden", "missing") and (example := _example(place, kind, "write it as {}")):
        return example
    hint = _HINTS.get(wrong)
    return hint.format(**context) if hint else "this will not do"


def _example(place: Place, kind: type[BaseModel], words: str) -> str:
    """How the model says that this field is written (`Field(examples=…)`)."""
    _, field = _at(place, kind)
    return words.format(" or ".join(map(str, field.examples))) if field is not None and field.examples else ""


def _real(place: Place, table: object) -> Place:
    """The part of a place that stands in the table: pydantic appends the kinds that it tried."""
    for index, part in enumerate(place):
        try:
            table = _inside(table, part)
        except LookupError:
            return place[:index]
    return place


def _inside(table: object, part: int | str) -> object:
    """What a table or a list holds under a key or number; `LookupError` if nothing."""
    if isinstance(table, Mapping):
        held: object = table[part]
        return held
    if isinstance(table, list | tuple) and isinstance(part, int):
        return table[part]
    raise LookupError(part)


def _words(place: Place, table: object) -> str:
    """Where in the file; elements of a list by their names if they have some, otherwise by their numbers from 1."""
    words: list[str] = []
    for part in place:
        try:
            table = _inside(table, part)
        except LookupError:
            table = None
        if isinstance(part, int) and words:
            name = table.get("name") if isinstance(table, Mapping) else None
            words[-1] += f"[{name if isinstance(name, str) and name else part + 1}]"
        else:
            words.append(str(part))
    return ".".join(words) or "the whole"


def _at(place: Place, kind: type[BaseModel]) -> tuple[object, FieldInfo | None]:
    """The type of what stands at a place, and what the model says of it besides; None where nothing is known."""
    found: object = kind
    field: FieldInfo | None = None
    for part in place:
        if _is_model(found) and str(part) in found.model_fields:
            field = found.model_fields[str(part)]
            annotation = _without_none(field.annotation)
            field, found = _annotated(annotation) or field, _kind_of(annotation)
            continue
        if _is_model(found):  # a key of the writer's own
            found = get_type_hints(found, include_extras=True).get("__pydantic_extra__")
        inner = [each for each in get_args(found) if each is not Ellipsis]
        field = _annotated(inner[-1] if inner else None)
        found = _kind_of(inner[-1]) if inner else None
    return found, field


def _is_model(found: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(found, type) and issubclass(found, BaseModel)


def _annotated(annotation: object) -> FieldInfo | None:
    notes: Sequence[object] = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((note for note in notes if isinstance(note, FieldInfo)), None)


def _kind_of(annotation: object) -> object:
    return _without_none(get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation)


def _without_none(annotation: object) -> object:
    """Without `None`, which TOML cannot say."""
    options: list[object] = [each for each in get_args(annotation) if each is not type(None)]
    return options[0] if type(None) in get_args(annotation) and options else annotation
