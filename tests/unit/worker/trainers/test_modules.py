"""Any torch module: what can be shared reaches it in place, and what cannot is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from torch import Tensor, nn

from protocol.errors import TrainingError
from protocol.spec import TensorKind
from worker.api.weights import Weights
from worker.trainers.initial import spec_and_payload
from worker.trainers.modules import Live, ModuleTensors, model_spec, unwrapped


def raw(model: nn.Module) -> dict[str, bytes]:
    """All of a module's own tensors, bit by bit."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return {name: each.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() for name, each in found}


def with_buffer(value: Tensor) -> nn.Module:
    """A layer with one more buffer, `more`."""
    model = nn.Linear(3, 3)
    model.register_buffer("more", value)
    return model


def round_trip(model: nn.Module, other: nn.Module) -> ModuleTensors:
    """Write one module's values into another."""
    spec, payload = spec_and_payload(model)
    records = list(payload)
    tensors = ModuleTensors(other)
    tensors.load(Weights(spec, lambda: iter(records)))
    return tensors


class Copied(nn.Linear):
    """Its state dict is a copy, as adapters' and exporters' are."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {name: each.detach().clone() for name, each in self.named_parameters()}


class Some(nn.Module):
    """Shares its adapter alone, of which the state dict gives the very tensors."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.base, self.adapter = nn.Linear(3, 3).requires_grad_(not frozen), nn.Linear(3, 3)

    def state_dict(self) -> dict[str, Any]:
        return {f"lora.{name}": each.detach() for name, each in self.adapter.named_parameters()}


class Fused(nn.Module):
    """Keeps apart what its state dict gives as one."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(2)) for _ in range(3)])
        self._register_state_dict_hook(lambda module, state, prefix, _: {"qkv": torch.cat(list(state.values()))})


class Remembering(nn.Linear):
    """Has extra state, as scaled layers and quantisers have."""

    def __init__(self, state: Any) -> None:
        super().__init__(3, 3)
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state.clone() if isinstance(self.state, Tensor) else self.state

    def set_extra_state(self, state: Any) -> None:
        """Nothing."""


class Once(nn.Linear):
    """Gives its tensors once, as an adapter's state dict that is filtered twice."""

    asked = 0

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.asked += 1
        return super().state_dict(*args, **kwargs) if self.asked == 1 else {}


class Dictionary(nn.Linear):
    """Gives something that is no tensor among its tensors."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().state_dict(*args, **kwargs), "config": {"depth": 3}}


def hooked() -> nn.Module:
    """A hook deep inside that makes copies."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1]._register_state_dict_hook(
        lambda m, state, prefix, _: state.update({k: v.clone() for k, v in state.items()})
    )
    return model


def kept_copy() -> nn.Module:
    """A hook that makes copies once and gives them for ever: what is written to one is read from it again."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    kept = {name: each.clone() for name, each in model.named_buffers()}
    model._register_state_dict_hook(lambda module, state, prefix, _: state.update(kept))
    return model


def meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 3)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "copies": (lambda: Copied(3, 3), "'weight' of Copied is trained, but state_dict"),
    "hooks": (hooked, "is trained, but state_dict"),
    "fused": (Fused, "'parts.0' of Fused is trained, but state_dict"),
    "frozen copies": (lambda: Copied(3, 3).requires_grad_(False), "'weight' of Copied.*does not reach the model"),
    "trained and not shared": (lambda: Some(frozen=False), "'base.weight' of Some is trained"),
    "extra state": (lambda: Remembering(torch.ones(2)), "'_extra_state' of Remembering.*does not reach the model"),
    "kept copies": (kept_copy, "'1.running_mean' of Sequential.*does not reach the model"),
    "gone": (lambda: Once(3, 3), "'weight' of Once is in the state dict once and not again"),
    "no tensor": (lambda: Dictionary(3, 3), "'config' in the state dict of Dictionary is a dict and no tensor"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' of Sequential has no shape yet; pass one batch"),
    "meta": (meta, r"'weight' of Linear has no values yet \(device \"meta\"\)"),
    "sparse": (lambda: with_buffer(torch.eye(3).to_sparse()), "'more' of Linear is sparse"),
    "compressed": (lambda: with_buffer(torch.eye(3).to_sparse_csr()), "'more' of Linear is sparse"),
    "nested": (
        lambda: with_buffer(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        "'more' of Linear is sparse or nested",
    ),
    "complex": (
        lambda: with_buffer(torch.ones(3, dtype=torch.complex64)),
        "'more' of Linear has the type torch.complex64",
    ),
    "eight bits": (
        lambda: with_buffer(torch.zeros(3).to(torch.float8_e4m3fn)),
        "'more' of Linear has the type torch.float8",
    ),
    "quantised": (
        lambda: with_buffer(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
        "'more' of Linear has the type torch.qint8",
    ),
    "nothing": (nn.ReLU, "ReLU has no tensors"),
    "not a number": (lambda: with_buffer(torch.tensor([1.0, float("nan"), float("inf")])), "'more' holds values"),
}


@pytest.mark.filterwarnings("ignore")  # of torch's own about tensors of rare kinds
@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_cannot_be_shared_is_refused_by_the_name_of_its_tensor(kind: str) -> None:
    make, told = REFUSED[kind]
    model = make()
    with pytest.raises(TrainingError, match=told):
        list(spec_and_payload(model)[1])


def normed() -> nn.Module:
    """Statistics, a counter, weights under two names."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def turned_tie() -> nn.Module:
    """Two parameters in the same memory, one turned."""
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    return model


SHARED: dict[str, Callable[[], nn.Module]] = {
    "statistics and ties": normed,
    "turned ties": turned_tie,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(3, 3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
    "recurrent": lambda: nn.LSTM(3, 3, num_layers=2),
    "average of weights": lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(3, 3)),
    "adapter alone": lambda: Some(frozen=True),
    "expanded": lambda: with_buffer(torch.arange(3.0).expand(4, 3)),
    "expanded half": lambda: with_buffer(torch.arange(3.0).bfloat16().expand(4, 3)),
    "unsigned": lambda: with_buffer(torch.arange(3).to(torch.uint16)),
    "empty": lambda: with_buffer(torch.empty(0, 3)),
    "number": lambda: with_buffer(torch.tensor(2.5)),
    "names": lambda: nn.ModuleDict({"Größe/1": nn.Linear(2, 2), "a b": nn.Linear(2, 2), "数": nn.Linear(2, 2)}),
    "frozen": lambda: nn.Linear(3, 3).requires_grad_(False),
    "extra state": lambda: Remembering({"calls": 3}),
    "bytes as extra state": lambda: Remembering(torch.zeros(5, dtype=torch.uint8)),
    "double": lambda: nn.Linear(3, 3).double(),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))),
    "parallel": lambda: nn.Sequential(nn.DataParallel(nn.Linear(3, 3))),
}


@pytest.mark.filterwarnings("ignore")  # of torch's own about old weight norm and scripts
@pytest.mark.parametrize("kind", SHARED)
def test_a_model_that_can_be_shared_takes_every_value_and_is_otherwise_left_alone(kind: str) -> None:
    torch.manual_seed(1)
    model = SHARED[kind]()
    torch.manual_seed(2)
    other = SHARED[kind]()
    before = raw(model)
    tensors = round_trip(model, other)
    assert raw(model) == before
    theirs = ModuleTensors(model)
    for name, array in Live(theirs.named(theirs.spec)).items():
        np.testing.assert_array_equal(Live(tensors.named(theirs.spec))[name], array)
    assert model_spec(other) == theirs.spec


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
def test_looking_at_a_tensor_leaves_every_bit_of_it(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    model = nn.ParameterDict({"a": nn.Parameter(torch.from_numpy(values.copy())), "b": torch.ones(1)})
    ModuleTensors(model)
    assert model["a"].detach().numpy().tobytes() == values.tobytes()


def test_a_failed_look_restores_what_it_wrote() -> None:
    model = Remembering(torch.ones(2))
    before = raw(model)
    with pytest.raises(TrainingError):
        ModuleTensors(model)
    assert raw(model) == before


class Masked(nn.Module):
    """A causal mask as a persistent buffer, and a statistic beside it."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", mask)


@pytest.mark.parametrize(
    "mask",
    [
        torch.full((4, 4), float("-inf")).triu(1),
        torch.full((4, 4), float("inf")).bfloat16(),
        torch.tensor(torch.finfo(torch.float64).min, dtype=torch.float64),
    ],
)
def test_a_mask_with_infinities_that_nobody_trains_stays_where_it_is(mask: Tensor) -> None:
    with capture_logs() as logged:
        tensors = round_trip(Masked(mask), Masked(mask.clone()))
    assert "mask" not in {tensor.name for tensor in tensors.spec.tensors}
    assert {
        "event": "model.stays_here",
        "log_level": "info",
        "tensors": ["mask"],
        "reason": "not trained, not finite",
    } in logged
    # It stays unknown to the run when it holds other values later on, as an observer's bounds do.
    model = Masked(mask)
    looked = ModuleTensors(model)
    with torch.no_grad():
        model.mask.zero_()
    assert "mask" not in looked.named(looked.spec)


def test_infinite_weights_and_statistics_are_broken_and_no_masks() -> None:
    for name in ("layer.bias", "norm.running_var"):
        model = Masked(torch.zeros(1))
        with torch.no_grad():
            model.state_dict()[name][0] = float("inf")
        with pytest.raises(TrainingError, match=f"'{name}' holds values that are not finite"):
            list(spec_and_payload(model)[1])


def test_what_wraps_a_model_is_not_in_its_names_and_older_runs_may_still_have_it() -> None:
    class Wrapping(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self._orig_mod = inner  # as `torch.compile` does

    def inside() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), Wrapping(nn.DataParallel(nn.BatchNorm1d(3))))

    plain = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    wrapped = Wrapping(inside())
    assert model_spec(wrapped) == model_spec(plain)
    assert unwrapped(nn.DataParallel(Wrapping(plain))) is plain
    tensors = round_trip(plain, wrapped)
    older = model_spec(plain)
    renamed = {t.name: f"_orig_mod.{t.name}".replace(".1.", ".1._orig_mod.module.") for t in older.tensors}
    assert set(renamed.values()) == set(wrapped.state_dict())
    spec = type(older)(
        tuple(type(t)(name=renamed[t.name], shape=t.shape, dtype=t.dtype, kind=t.kind) for t in older.tensors)
    )
    assert tensors.named(spec).keys() == set(renamed.values())


def test_parameters_are_known_as_such_also_where_the_state_dict_detaches_them() -> None:
    assert {tensor.kind for tensor in model_spec(Some(frozen=True)).tensors} == {TensorKind.PARAMETER}
