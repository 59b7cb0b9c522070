"""ModelSpec: which tensors a model has, and the one payload layout that follows from it.

The payload is a safetensors file: eight bytes of header length, a JSON header padded to eight bytes, the data. The
header is a pure function of the specification; floating tensors come first, in specification order, all as float32,
then the others in their own type. An update's payload has the same header and ends after the floating tensors, so
record i of every blob of a run holds the same elements.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import Annotated

from pydantic import Field

from protocol import limits
from protocol.codec import EXACT, TEXT, Count, decode, encode, many
from protocol.errors import Malformed, TooLarge


class TensorKind(StrEnum):
    """How the aggregator moves a tensor."""

    PARAMETER = "parameter"
    """By the strategy."""
    BUFFER = "buffer"
    """By the plain weighted mean (BatchNorm's running statistics)."""
    OTHER = "non-float"
    """Not at all: it keeps version 0's value."""


FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor: `dtype` is the trainer's own, in safetensors' names."""

    __pydantic_config__ = EXACT
    name: Annotated[str, Field(strict=True, min_length=1, max_length=limits.TENSOR_NAME)]
    shape: Annotated[tuple[Count, ...], many(limits.DIMENSIONS)]
    dtype: Annotated[str, Field(strict=True, max_length=8)]
    kind: Annotated[TensorKind, TEXT]

    @property
    def elements(self) -> int:
        """Number of elements (Python integers cannot overflow)."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensors:
    __pydantic_config__ = EXACT
    v: Annotated[int, Field(strict=True, ge=1, le=1)]
    tensors: Annotated[tuple[TensorSpec, ...], many(limits.TENSORS, 1)]


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and its bytes [start, stop) in the payload."""

    tensor: TensorSpec
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Span:
    """Elements of one floating tensor inside one record: bytes [start, stop) of the record."""

    tensor: TensorSpec
    start: int
    stop: int
    offset: int
    """Index of the first element within the flattened tensor."""


class ModelSpec:
    """The ordered tensors of a model and the layout that follows; equal specifications have equal digests."""

    def __init__(self, tensors: tuple[TensorSpec, ...]) -> None:
        """Check the tensors together.

        Raises:
            Malformed: a name appears twice or a type does not go with its kind.
            TooLarge: over a limit.
        """
        _check(tensors)
        self.tensors = tensors
        if len(self._encoded) > limits.SPEC or self.model_length > limits.BLOB:
            raise TooLarge(f"the specification is over {limits.SPEC} bytes or the model over {limits.BLOB}")

    @classmethod
    def from_bytes(cls, raw: bytes) -> ModelSpec:
        """Read what `to_bytes` wrote.

        Raises:
            Malformed: not a valid specification.
            TooLarge: over a limit.
        """
        return cls(decode(_Tensors, raw, limits.SPEC).tensors)

    def to_bytes(self) -> bytes:
        """The bytes whose SHA-256 is `digest`."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        return encode(_Tensors(v=1, tensors=self.tensors))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of `to_bytes()`; stands in every head and update."""
        return hashlib.sha256(self._encoded).digest()

    @cached_property
    def placed(self) -> tuple[Placed, ...]:
        """Every tensor with its place, in payload order."""
        ordered = [t for t in self.tensors if t.kind != TensorKind.OTHER]
        ordered += [t for t in self.tensors if t.kind == TensorKind.OTHER]
        result: list[Placed] = []
        position = 0
        for tensor in ordered:
            size = tensor.elements * (OTHERS[tensor.dtype] if tensor.kind == TensorKind.OTHER else 4)
            result.append(Placed(tensor, position, position + size))
            position += size
        shift = len(_header(result))
        return tuple(Placed(p.tensor, p.start + shift, p.stop + shift) for p in result)

    @cached_property
    def header(self) -> bytes:
        """The first bytes of every payload."""
        shift = self.placed[0].start
        return _header([Placed(p.tensor, p.start - shift, p.stop - shift) for p in self.placed])

    @cached_property
    def update_length(self) -> int:
        """Bytes of an update's payload: header and floating tensors."""
        return max((p.stop for p in self.placed if p.tensor.kind != TensorKind.OTHER), default=len(self.header))

    @cached_property
    def model_length(self) -> int:
        """Bytes of a model's payload."""
        return self.placed[-1].stop

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the floating tensors."""
        return frozenset(t.name for t in self.tensors if t.kind != TensorKind.OTHER)

    def spans(self, record: int) -> Iterator[Span]:
        """The floating elements in record `record`, in order."""
        start, stop = record * limits.RECORD, (record + 1) * limits.RECORD
        floats = self._floats
        index = _first_ending_after(floats, start)
        while index < len(floats) and floats[index].start < stop:
            place = floats[index]
            left, right = max(place.start, start), min(place.stop, stop)
            if right > left:
                yield Span(place.tensor, left - start, right - start, (left - place.start) // 4)
            index += 1

    @cached_property
    def _floats(self) -> tuple[Placed, ...]:
        return tuple(p for p in self.placed if p.tensor.kind != TensorKind.OTHER)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelSpec) and self.tensors == other.tensors

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"ModelSpec({len(self.tensors)} tensors, {self.model_length} bytes, {self.digest.hex()[:12]})"


def records(length: int) -> int:
    """How many records a payload of `length` bytes has (at least one)."""
    return max(1, -(-length // limits.RECORD))


def _first_ending_after(places: tuple[Placed, ...], position: int) -> int:
    low, high = 0, len(places)
    while low < high:
        middle = (low + high) // 2
        if places[middle].stop <= position:
            low = middle + 1
        else:
            high = middle
    return low


def _header(placed: list[Placed]) -> bytes:
    entries = {
        p.tensor.name: {
            "dtype": p.tensor.dtype if p.tensor.kind == TensorKind.OTHER else "F32",
            "shape": list(p.tensor.shape),
            "data_offsets": [p.start, p.stop],
        }
        for p in placed
    }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check(tensors: tuple[TensorSpec, ...]) -> None:
    if not 1 <= len(tensors) <= limits.TENSORS:
        raise TooLarge(f"a model has 1 to {limits.TENSORS} tensors, not {len(tensors)}")
    seen: set[str] = set()
    total = 0
    for tensor in tensors:
        known = OTHERS if tensor.kind == TensorKind.OTHER else FLOATS
        if tensor.dtype not in known:
            raise Malformed(f"tensor {tensor.name!r}: {tensor.dtype!r} is not a type of kind {tensor.kind.value}")
        if tensor.name in seen or tensor.name == "__metadata__":
            raise Malformed(f"tensor name {tensor.name!r} appears twice or is reserved")
        seen.add(tensor.name)
        total += tensor.elements * max(4, known[tensor.dtype])
        if total > limits.BLOB:
            raise TooLarge(f"the model is over {limits.BLOB} bytes")
