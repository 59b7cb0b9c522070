"""How any torch module is read and written: in place, under its names, and only if what is written reaches it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import structlog
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from protocol.errors import TrainingError
from protocol.spec import ModelSpec, TensorKind, TensorSpec
from worker.api.weights import Array, Piece, Weights, check_names, store, write_records

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_EXTRA = "_extra_state"
"""What torch calls a module's `get_extra_state()` in a state dict."""
_WRAPPED = "_orig_mod"
"""What `torch.compile` calls the module that it compiles."""
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_LARGEST = float(np.finfo(np.float32).max)
_Place = tuple[object, ...]
_log = structlog.get_logger(__name__)


class ModuleTensors:
    """The tensors of a module that a federation can share, looked at once before any of them is used.

    Every tensor is written to and read back: of some modules `state_dict()` gives copies (adapters, fused weights,
    hooks), and such a module would train for ever on nothing. Buffers and frozen parameters that hold infinities
    (attention masks) stay as the module makes them, and so does extra state that is no tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Raises:
            TrainingError: a tensor cannot be shared, or what is written to it does not reach the module.
        """
        self._model = model
        found = _entries(model)
        _check_trained(model, found)
        _check_copies(model, found)
        _probe(model, found)
        self._constant = frozenset(_constants(model, found))
        if self._constant:
            _log.info("model.stays_here", tensors=sorted(self._constant), reason="not trained, not finite")

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has; several names of the same tensor are one, under the first of them."""
        parameters = {_place(each) for each in self._model.parameters() if not _fault(each)}
        found = [(names[0], tensor) for names, tensor in distinct(self._model) if names[0] not in self._constant]
        if not found:
            raise TrainingError(f"{type(self._model).__name__} has no tensors; there is nothing to train together")
        return ModelSpec(tuple(_tensor_spec(name, tensor, _place(tensor) in parameters) for name, tensor in found))

    def payload(self, spec: ModelSpec) -> Iterator[bytes]:
        """The payload of the present values, record by record."""
        return write_records(spec, Live(self.named(spec)).__getitem__)

    def named(self, spec: ModelSpec) -> dict[str, Tensor]:
        """The tensors as they are now, under the names of a run's specification.

        Raises:
            TrainingError: the module is not the run's model.
        """
        known = {tensor.name for tensor in spec.tensors}
        result: dict[str, Tensor] = {}
        for names, tensor in distinct(self._model):
            theirs = [name for name in names if name in known]
            if theirs or names[0] not in self._constant:
                result |= dict.fromkeys(theirs or names[:1], tensor.detach())
        check_names(spec, result)
        return result

    def load(self, weights: Weights) -> dict[str, Tensor]:
        """Overwrite the tensors in place; returns them under the names of the specification.

        Raises:
            TrainingError: the module is not the run's model, or a value does not fit its type.
        """
        tensors = self.named(weights.spec)
        for tensor in weights.spec.tensors:
            found = tensors.get(tensor.name)
            if found is not None and (
                tuple(found.shape) != tensor.shape or found.is_floating_point() == (tensor.kind == TensorKind.OTHER)
            ):
                raise TrainingError(
                    f"tensor {tensor.name!r} is {list(found.shape)} {found.dtype} in this model and "
                    f"{list(tensor.shape)} {tensor.dtype} in the run's"
                )
        arrays = {name: tensor.numpy() for name, tensor in tensors.items() if _is_array(tensor) and tensor.numel()}
        whole: Array = np.empty(0)
        for piece in weights.pieces():
            name = piece.tensor.name
            if name in arrays:
                store(piece, arrays[name])
            elif name in tensors:
                whole = _store_elsewhere(piece, tensors[name], whole)
        return tensors


class Live(Mapping[str, Array]):
    """Tensors as arrays: views where numpy can see them, else copies made when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def bfloat16(self) -> frozenset[str]:
        """The names of those that are bfloat16 where they are trained."""
        return frozenset(name for name, tensor in self._tensors.items() if tensor.dtype == torch.bfloat16)


def model_spec(model: nn.Module) -> ModelSpec:
    """The tensors of a module; several names of the same tensor are one, under the first of them.

    Raises:
        TrainingError: as `ModuleTensors`.
    """
    return ModuleTensors(model).spec


def load(model: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """Overwrite a module's tensors in place; returns them under the names of the specification.

    Raises:
        TrainingError: the module is not the run's model, or a value does not fit its type.
    """
    return ModuleTensors(model).load(weights)


def distinct(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every tensor once with all its names: networks that share weights list them several times.

    What `torch.compile` and `DataParallel` put into the names comes after the names without it.
    """
    found: dict[_Place, tuple[list[str], Tensor]] = {}
    added = _added(model)
    for name, tensor in _entries(model).items():
        plain = _without(name, added)
        # Empty tensors have no place of their own.
        names, _ = found.setdefault(_place(tensor) if tensor.numel() else (name,), ([], tensor))
        names += [plain] if plain == name else [plain, name]
    return list(found.values())


def unwrapped(network: nn.Module) -> nn.Module:
    """A network without what was put around it for several GPUs or by `torch.compile`."""
    inner = dict(network.named_children()).get("module" if isinstance(network, _PARALLEL) else _WRAPPED)
    return network if inner is None else unwrapped(inner)


def _added(model: nn.Module) -> list[tuple[str, str]]:
    """What wrappers put into names, and what stands there without them; the innermost first."""
    found = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        outer = f"{prefix}." if prefix else ""
        if isinstance(module, _PARALLEL):
            found.append((f"{outer}module.", outer))
        elif _WRAPPED in dict(module.named_children()):
            found.append((f"{outer}{_WRAPPED}.", outer))
    return sorted(found, key=lambda each: -len(each[0]))


def _without(name: str, added: Iterable[tuple[str, str]]) -> str:
    for inner, outer in added:
        if name.startswith(inner):
            name = outer + name.removeprefix(inner)
    return name


def _entries(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without what is no tensor; extra state that is not floating belongs to the site, too."""
    try:
        found: Mapping[str, object] = model.state_dict(keep_vars=True)
    except TypeError:  # a state_dict() of the module's own that takes no arguments
        found = model.state_dict()
    result: dict[str, Tensor] = {}
    for name, value in found.items():
        extra = name.rpartition(".")[2] == _EXTRA
        if isinstance(value, Tensor) and not (extra and not value.is_floating_point()):
            if fault := _fault(value):
                raise TrainingError(f"tensor {name!r} of {type(model).__name__} {fault}")
            result[name] = value
        elif not extra:
            raise TrainingError(
                f"{name!r} in the state dict of {type(model).__name__} is a {type(value).__name__} and no tensor; "
                "leave it out of state_dict(), or give it by get_extra_state(), which stays at the site"
            )
    return result


def _fault(tensor: Tensor) -> str:
    """Why no model can hold a tensor, and what to do; empty if one can."""
    local = "or keep it out of the model with persistent=False"
    if is_lazy(tensor):
        return "has no shape yet; pass one batch through the model before you give it to fledge"
    if tensor.is_meta:
        return 'has no values yet (device "meta"); call model.to_empty(device="cpu") and load or initialise its weights'
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is sparse or nested ({tensor.layout}); make it dense, {local}"
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}, which wraps other tensors; give the model before it was wrapped"
    if tensor.is_complex():
        return f"has the type {tensor.dtype}; hold it as real numbers (torch.view_as_real), {local}"
    if tensor.dtype not in _DTYPES:
        return f"has the type {tensor.dtype}, which no model can hold; convert it, as with .float(), {local}"
    return ""


def _place(tensor: Tensor) -> _Place:
    """Where a tensor lies, and how: equal for two that are one."""
    at = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*at, tensor.shape, tensor.stride(), tensor.dtype)


def _check_trained(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Whether the state dict gives the memory of all that is trained."""
    given = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
    for name, each in model.named_parameters():
        if not each.requires_grad:
            continue
        if fault := _fault(each):
            raise TrainingError(f"tensor {name!r} of {type(model).__name__} {fault}")
        if each.numel() and each.untyped_storage().data_ptr() not in given:
            raise TrainingError(
                f"parameter {name!r} of {type(model).__name__} is trained, but state_dict() gives a copy of it or "
                "nothing, so what is learned would never be shared; let state_dict() and its hooks give the module's "
                "own tensors, or freeze it with requires_grad_(False)"
            )


def _check_copies(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Whether the state dict gives a module's own tensors under their names: a copy that is kept passes any probe."""
    own = dict(model.named_buffers()) | dict(model.named_parameters())
    for name, tensor in found.items():
        if (mine := own.get(name)) is None or _fault(mine) or not mine.numel() or not tensor.numel():
            continue
        if mine.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
            raise _copied(model, name)


def _copied(model: nn.Module, name: str) -> TrainingError:
    return TrainingError(
        f"tensor {name!r} of {type(model).__name__}: what is written to it does not reach the model, because "
        "state_dict() gives a copy of it; let state_dict() and its hooks give the module's own tensors, or register it "
        "as a buffer"
    )


def _probe(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Write to both ends of each tensor, read them back from the module, and restore them bit by bit."""
    ends = [
        (name, tensor.detach(), at)
        for name, tensor in found.items()
        if tensor.numel()
        for at in ((0,) * tensor.dim(), (-1,) * tensor.dim())
    ]
    before = [tensor[at].clone() for _, tensor, at in ends]
    probes = [_other(value) for value in before]
    written = 0
    try:
        for (_, tensor, at), probe in zip(ends, probes, strict=True):
            written += 1
            _write(tensor, at, probe)
        again = _entries(model)
        for (name, _, at), probe in zip(ends, probes, strict=True):
            if name not in again:
                raise TrainingError(
                    f"tensor {name!r} of {type(model).__name__} is in the state dict once and not again; let "
                    "state_dict() give the same names whenever it is asked"
                )
            if not torch.equal(again[name].detach()[at], probe):
                raise _copied(model, name)
    finally:
        for (_, tensor, at), value in zip(ends[:written], before, strict=False):
            _write(tensor, at, value)


def _other(value: Tensor) -> Tensor:
    """Another value of the same type."""
    if value.dtype == torch.bool:
        return ~value
    return torch.full_like(value, 2 if bool(value == 1) else 1)


def _write(tensor: Tensor, at: tuple[int, ...], value: Tensor) -> None:
    """As values of a version are written."""
    if _is_array(tensor):
        tensor.numpy()[at] = value.numpy()
    else:
        tensor[at].copy_(value)


def _constants(model: nn.Module, found: Mapping[str, Tensor]) -> Iterator[str]:
    """The names of tensors that nobody trains and that hold infinities; BatchNorm's statistics never should."""
    added = _added(model)
    trained = {_place(each) for each in model.parameters() if each.requires_grad}
    trained |= {_place(each) for m in model.modules() if isinstance(m, _NormBase) for each in m.buffers(recurse=False)}
    for name, tensor in found.items():
        if tensor.is_floating_point() and tensor.numel() and _place(tensor) not in trained:
            low, high = (float(each) for each in torch.aminmax(tensor.detach()))
            if max(-low, high) > _LARGEST:  # never so with a NaN among them
                yield _without(name, added)


def _tensor_spec(name: str, tensor: Tensor, parameter: bool) -> TensorSpec:
    kind = TensorKind.PARAMETER if parameter else TensorKind.BUFFER
    if not tensor.is_floating_point():
        kind = TensorKind.OTHER
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=_DTYPES[tensor.dtype], kind=kind)


def _store_elsewhere(piece: Piece, target: Tensor, whole: Array) -> Array:
    """Write a piece of a tensor that numpy cannot see: on a GPU, or bfloat16."""
    if target.is_contiguous():
        stop = piece.offset + piece.values.size
        target.view(-1)[piece.offset : stop].copy_(torch.from_numpy(piece.values.copy()))
        return whole
    if piece.offset == 0:
        whole = np.empty(piece.tensor.shape, piece.values.dtype)
    store(piece, whole)
    if piece.offset + piece.values.size == whole.size:
        # An expanded tensor has the same memory several times; torch writes to each place once.
        once = tuple(slice(1) if step == 0 else slice(None) for step in target.stride())
        target[once].copy_(torch.from_numpy(whole)[once])
    return whole


def _is_array(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16
