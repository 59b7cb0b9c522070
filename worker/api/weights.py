"""A model's weights as a stream of payload records: into a trainer's arrays, and out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol import limits
from protocol.cipher import Octets
from protocol.errors import Tampered, TrainingError
from protocol.spec import ModelSpec, Placed, TensorKind, TensorSpec

Array = NDArray[Any]  # of whatever dtype a trainer's tensor has
Records = Callable[[], Iterator[Octets]]
"""Opens a payload's plaintext records from the first one; may be called again. Each is valid until the next but one."""
DTYPES: Mapping[str, np.dtype[np.generic]] = {
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
}
"""The types of tensors that are not floating."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NAMES |= {np.dtype(f"<f{size}"): f"F{8 * size}" for size in (2, 4, 8)}
F32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some neighbouring elements of a tensor; `values` is flat, read-only, and valid until the next piece."""

    tensor: TensorSpec
    offset: int
    """Index of the first element within the flattened tensor."""
    values: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnValues:
    """A site's own values of some tensors of a model, as a payload of their own."""

    spec: ModelSpec
    """What the payload holds."""
    names: frozenset[str]
    """Which of it to use."""
    records: Records


class Weights:
    """A version's weights as one site sees them: its own values where it keeps a tensor to itself.

    Nothing is held in memory; every read decrypts the payload again.
    """

    def __init__(self, spec: ModelSpec, records: Records, own: OwnValues | None = None) -> None:
        """`own` goes before the version's values."""
        self.spec = spec
        self._records = records
        self._own = own
        self.was_read = False
        """Whether anybody has begun to read them."""

    def pieces(self) -> Iterator[Piece]:
        """Every element once, in pieces of at most 1 MiB: float32, or the own type of what is not floating.

        Raises:
            Tampered: the payload is not one of this model.
        """
        self.was_read = True
        own = self._own.names if self._own else frozenset[str]()
        for piece in read_pieces(self.spec, self._records()):
            if piece.tensor.name not in own:
                yield piece
        if self._own and own:
            for piece in read_pieces(self._own.spec, self._own.records()):
                if piece.tensor.name in own:
                    yield piece

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Every tensor in its shape, one at a time: float32, or the own type of what is not floating."""
        array: Array = np.empty(0)
        for piece in self.pieces():
            if piece.offset == 0:
                array = np.empty(piece.tensor.shape, piece.values.dtype)
            array.reshape(-1)[piece.offset : piece.offset + piece.values.size] = piece.values
            if piece.offset + piece.values.size == piece.tensor.elements:
                yield piece.tensor.name, array
        for tensor in self.spec.tensors:
            if tensor.elements == 0:
                yield tensor.name, np.empty(tensor.shape, DTYPES.get(tensor.dtype, F32))

    def copy_into(self, targets: Mapping[str, Array]) -> None:
        """Overwrite a trainer's arrays in place, cast to their own type.

        `targets` holds exactly the floating tensors of the specification; those that are not floating may be missing.

        Raises:
            TrainingError: a tensor is missing, unknown, of another shape, or does not fit its type; the arrays may
                hold some of the new values then.
            Tampered: the payload is not one of this model.
        """
        check_names(self.spec, targets)
        for tensor in self.spec.tensors:
            if tensor.name in targets:
                check_array(tensor, targets[tensor.name], writeable=True)
        for piece in self.pieces():
            target = targets.get(piece.tensor.name)
            if target is not None:
                store(piece, target)


def store(piece: Piece, target: Array) -> None:
    """Write a piece into the array of its tensor, cast to the array's type.

    Raises:
        TrainingError: a value is too large for that type.
    """
    # `reshape` would copy what is not contiguous, `flat` would be slow for what is.
    flat = target.reshape(-1) if target.flags.c_contiguous else target.flat
    try:
        with np.errstate(over="raise"):
            flat[piece.offset : piece.offset + piece.values.size] = piece.values
    except FloatingPointError:
        raise TrainingError(
            f"tensor {piece.tensor.name!r}: a value of the base is too large for {target.dtype}"
        ) from None


def check_names(spec: ModelSpec, arrays: Mapping[str, object]) -> None:
    """Compare a trainer's names with the run's.

    Raises:
        TrainingError: a floating tensor is missing, or one is unknown.
    """
    missing = sorted(name for name in spec.names if name not in arrays)
    unknown = sorted(set(arrays) - {tensor.name for tensor in spec.tensors})
    if missing or unknown:
        what = f"has no tensor {_some(missing)}"
        if not missing:
            what = f"has a tensor that the run does not know: {_some(unknown)}"
        raise TrainingError(f"the trainer's model {what}; train the very model the run was started with")


def check_array(tensor: TensorSpec, array: Array, *, writeable: bool = False) -> None:
    """Compare a trainer's array with its tensor.

    Raises:
        TrainingError: its shape or type cannot hold the tensor, or it is read-only and must not be.
    """
    if array.shape != tensor.shape:
        raise TrainingError(
            f"tensor {tensor.name!r} has the shape {list(array.shape)} in the trainer's model and "
            f"{list(tensor.shape)} in the run's"
        )
    kinds = "f" if tensor.kind != TensorKind.OTHER else "iub"
    if array.dtype.kind not in kinds:
        raise TrainingError(
            f"tensor {tensor.name!r} is {array.dtype} in the trainer's model, {tensor.dtype} in the run's"
        )
    if writeable and not array.flags.writeable:
        raise TrainingError(
            f"tensor {tensor.name!r}: the trainer's array is read-only; give arrays that can be written"
        )


def read_pieces(spec: ModelSpec, payload: Iterable[Octets]) -> Iterator[Piece]:
    """The elements of a payload, in its order.

    Raises:
        Tampered: its header or length is not the specification's.
    """
    header, position = spec.header, 0
    others = [place for place in spec.placed if place.tensor.kind == TensorKind.OTHER and place.stop > place.start]
    held = bytearray()
    for index, record in enumerate(payload):
        inside = max(0, min(len(record), len(header) - position))
        if inside and record[:inside] != header[position : position + inside]:
            raise Tampered("the payload's header is not the model's", "wrong_header")
        for span in spec.spans(index):
            if span.stop > len(record):
                raise Tampered("the payload is shorter than the model", "truncated")
            values = np.frombuffer(record, F32, (span.stop - span.start) // 4, span.start)
            yield Piece(span.tensor, span.offset, values)
        position += len(record)
        while others and others[0].start < position:
            held += _overlap(others[0], record, position)
            if others[0].stop > position:
                break
            tensor = others.pop(0).tensor
            # Eight-byte elements may lie across two records, so these (small) tensors are put together first.
            yield Piece(tensor, 0, np.frombuffer(bytes(held), DTYPES[tensor.dtype]))
            held.clear()
    if position != spec.model_length:
        raise Tampered(f"the payload has {position} bytes, the model {spec.model_length}", "truncated")


def _overlap(place: Placed, record: Octets, stop: int) -> Octets:
    start = stop - len(record)
    return record[max(place.start, start) - start : min(place.stop, stop) - start]


def write_records(spec: ModelSpec, read: Callable[[str], Array]) -> Iterator[bytes]:
    """A model's payload from its arrays; `read` is asked for each tensor once, in payload order.

    Raises:
        TrainingError: an array does not fit its tensor, or holds values that are not finite.
    """
    pending = bytearray(spec.header)
    for place in spec.placed:
        array = read(place.tensor.name)
        check_array(place.tensor, array)
        for part in _parts(place.tensor, array):
            pending += part
            while len(pending) >= limits.RECORD:
                yield bytes(pending[: limits.RECORD])
                del pending[: limits.RECORD]
    if pending:
        yield bytes(pending)


def _parts(tensor: TensorSpec, array: Array) -> Iterator[bytes]:
    dtype = DTYPES.get(tensor.dtype, F32)
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    step = limits.RECORD // 4
    for start in range(0, tensor.elements, step):
        with np.errstate(over="ignore"):
            part = np.asarray(flat[start : start + step]).astype(dtype, copy=False)
        if dtype == F32 and not np.isfinite(part).all():
            raise TrainingError(
                f"tensor {tensor.name!r} holds values that are not finite in float32; begin with finite weights, and "
                "leave masks that nobody trains out of the model"
            )
        yield part.tobytes()


def tensor_spec(name: str, array: Array, kind: TensorKind) -> TensorSpec:
    """The specification of a numpy array; `kind` counts for floating arrays only.

    Raises:
        TrainingError: the specification has no such type.
    """
    dtype = _NAMES.get(array.dtype.newbyteorder("<"))
    if dtype is None:
        raise TrainingError(f"tensor {name!r}: a model cannot hold arrays of type {array.dtype}")
    kind = kind if array.dtype.kind == "f" else TensorKind.OTHER
    return TensorSpec(name=name, shape=tuple(array.shape), dtype=dtype, kind=kind)


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
