"""Version 0 of a trainer: its specification and its payload."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol, runtime_checkable

from protocol.errors import ConfigError
from protocol.spec import ModelSpec, TensorKind
from worker.api.weights import tensor_spec, write_records


@runtime_checkable
class HasModel(Protocol):
    """What our trainers offer beside training: the model that a run begins with."""

    @property
    def spec(self) -> ModelSpec:
        """Which tensors the model has."""

    def initial(self) -> Iterator[bytes]:
        """The payload of the model as it stands."""


def spec_and_payload(source: object, *, buffers: Collection[str] = ()) -> tuple[ModelSpec, Iterator[bytes]]:
    """The specification of a model and the payload of its present values, record by record.

    `source` is one of our trainers (anything with `spec` and `initial()`), a torch module, or numpy arrays by name; of
    the arrays, `buffers` are the statistics that move by the plain mean. The payload reads live arrays.

    Raises:
        ConfigError: it is none of these.
        TrainingError: a tensor has a type that no model can hold, or values that are not finite.
    """
    if isinstance(source, Mapping):
        kinds = {name: TensorKind.BUFFER if name in buffers else TensorKind.PARAMETER for name in source}
        spec = ModelSpec(tuple(tensor_spec(name, array, kinds[name]) for name, array in source.items()))
        return spec, write_records(spec, source.__getitem__)
    if isinstance(source, HasModel) and isinstance(spec := source.spec, ModelSpec):
        return spec, source.initial()
    # A module can only have been made by code that has imported torch already.
    if "torch" in sys.modules:
        from torch import nn

        from worker.trainers.modules import ModuleTensors

        if isinstance(source, nn.Module):
            tensors = ModuleTensors(source)
            spec = tensors.spec
            return spec, tensors.payload(spec)
    raise ConfigError(
        f"a {type(source).__name__} is no model; give a trainer, a torch module, or a mapping of names to numpy arrays"
    )
