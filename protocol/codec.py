"""Values to bytes and back: strict msgpack, checked against frozen dataclasses.

Signatures cover bytes, never objects, so nothing here has to be canonical; `encode` is still deterministic (fields in
declared order). Decoding refuses unknown and missing fields, duplicate keys, wrong types, numbers out of range, NaN
and infinity, trailing bytes and anything over a limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import msgpack
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from protocol import limits
from protocol.errors import Malformed, TooLarge, WrongContext

EXACT = ConfigDict(extra="forbid")
"""What every wire dataclass carries as `__pydantic_config__`; the field types below are strict one by one, because
pydantic's strict mode for a whole dataclass refuses the mapping it should be read from."""


def _exactly(kind: type) -> BeforeValidator:
    """Let only instances of `kind` through to a validator that would otherwise convert."""

    def check(value: object) -> object:
        if not isinstance(value, kind):
            raise ValueError(f"not {kind.__name__}")
        return value

    return BeforeValidator(check)


def many(most: int, least: int = 0) -> object:
    """Bounds of an array, whose check ends at the first wrong element.

    Without that, 20 kB of wrong elements become 40 MB of error reports.
    """
    bounds: object = Field(min_length=least, max_length=most, fail_fast=True)
    return bounds


TEXT = _exactly(str)
"""For enumerations of words, which pydantic would also read from bytes."""

Count = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; an integer is read as the real of its value."""
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Word = Annotated[str, Field(strict=True, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:+-]+$")]
"""A short name: never free text, so it is safe in logs, receipts and queue names."""
Text = Annotated[str, Field(strict=True, max_length=1024)]
Bytes = Annotated[bytes, Field(strict=True)]
Digest = Annotated[bytes, Field(strict=True, min_length=32, max_length=32)]
Id = Annotated[bytes, Field(strict=True, min_length=16, max_length=16)]
Metrics = Annotated[dict[Word, Real], Field(max_length=256)]
_Integer = Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)]
Plain = Flag | _Integer | Annotated[Real, _exactly(float)] | Text | None
Value = Plain | Annotated[tuple[Plain, ...], many(limits.PLAINS)]
"""What a command's argument or a column of its answer may be."""
Parameters = Annotated[dict[Word, Value], Field(max_length=64)]

T = TypeVar("T")
_WORD = re.compile(r"[A-Za-z0-9._:+-]{1,64}")
_names: dict[type, tuple[str, ...] | None] = {}
# Each makes values of the type it is kept under, which the type of a dict cannot say.
_adapters: dict[type, TypeAdapter[Any]] = {}


def is_word(text: object) -> bool:
    """Whether something is a `Word`."""
    return isinstance(text, str) and _WORD.fullmatch(text) is not None


def encode(value: object) -> bytes:
    """The msgpack bytes of a wire dataclass (or of plain values), fields in declared order."""
    packed: bytes = msgpack.packb(value, use_bin_type=True, default=_by_field)
    return packed


def decode(kind: type[T], raw: bytes, limit: int) -> T:
    """The value `raw` encodes.

    Raises:
        TooLarge: `raw` is over `limit` bytes.
        WrongContext: it says itself that a newer version wrote it (`upgrade_needed`).
        Malformed: anything else is wrong; the text names fields, never their values.
    """
    plain = unpack(raw, limit)
    try:
        return _adapter(kind).validate_python(plain)
    except ValidationError as error:
        if _is_newer(plain):
            raise WrongContext(f"{kind.__name__} was written by a newer version of fledge", "upgrade_needed") from None
        first = error.errors(include_context=False, include_input=False, include_url=False)[0]
        where = ".".join(_place(part) for part in first["loc"])[:80]
        raise Malformed(f"{kind.__name__}: field {where or '(whole)'}: {first['type']}") from None


def unpack(raw: bytes, limit: int) -> object:
    """Plain values from msgpack; arrays become tuples.

    Raises:
        TooLarge: `raw` is over `limit` bytes.
        Malformed: not msgpack, a duplicate or non-text key, an extension type, trailing bytes.
    """
    if len(raw) > limit:
        raise TooLarge(f"{len(raw)} bytes, at most {limit} are allowed")
    try:
        plain: object = msgpack.unpackb(
            raw,
            raw=False,
            use_list=False,
            strict_map_key=True,
            object_pairs_hook=_no_duplicates,
            ext_hook=_no_extensions,
            # Nothing on the wire has more; checked before the array or map is made.
            max_array_len=limits.TENSORS,
            max_map_len=limits.FIELDS,
        )
    except Malformed:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Malformed(f"not valid msgpack ({type(error).__name__})") from None
    return plain


def _is_newer(plain: object) -> bool:
    version = plain.get("v") if isinstance(plain, dict) else None
    return isinstance(version, int) and version > 1


def _place(part: int | str) -> str:
    """Part of a place within a message; a name that is not a word was made up by the sender and is not shown."""
    return str(part) if isinstance(part, int) or is_word(part) else "?"


def _no_extensions(code: int, data: bytes) -> NoReturn:
    raise Malformed("msgpack extension types are not used")


def _no_duplicates(pairs: Sequence[tuple[object, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise Malformed("a map key is not text")
        if key in result:
            raise Malformed("a map key appears twice")
        result[key] = value
    return result


def _by_field(value: object) -> dict[str, object]:
    """What msgpack asks about each object that it does not know."""
    names = _field_names(type(value))
    if names is None:
        raise TypeError(f"a {type(value).__name__} is no wire value")
    return {name: getattr(value, name) for name in names}


def _field_names(kind: type) -> tuple[str, ...] | None:
    """A dataclass's fields in declared order; None for other types."""
    if kind not in _names:
        _names[kind] = tuple(field.name for field in fields(kind)) if is_dataclass(kind) else None
    return _names[kind]


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]
