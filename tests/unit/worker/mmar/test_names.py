"""The table of Clara's component names: complete, documented, and pointing at what is installed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from monai.bundle.config_item import ConfigComponent

from worker.mmar.entries import ComponentRole, Entry, LeftOut, Mapped, Refused
from worker.mmar.names import TABLE
from worker.trainers.mmar import Installed, resolve

pytestmark = pytest.mark.filterwarnings("ignore")
SAID = ("fields", "field", "probability")
"""What 3.1 calls otherwise everywhere; the page says it once."""
PAGE = Path(__file__).parents[4] / "docs" / "mmar.md"
NAMED = [
    "ModelAggregator",
    "ModelEncryptor",
    "DataCompressor",
    "DataDeCompressor",
    "ModelDecryptor",
    "TFModelSaver",
    "TrainingCommandModule",
    "ValidationCommandModule",
    "ShellCommandModule",
    "SystemCommandModule",
    "ValidateResultProcessor",
    "IteratorNumberGenerator",
    "BestMetricGenerator",
    "StartClientProcessor",
    "ClientStatusProcessor",
    "AbortClientProcessor",
    "ShutdownClientProcessor",
    "DeployProcessor",
    "ValidateRequestProcessor",
    "ShellCommandProcessor",
    "DeleteRunNumberProcessor",
    "SysInfoProcessor",
    "RestartClientProcessor",
    "TFModelReaderWriter",
    "TFModelValidator",
    "InTimeAccumulateWeightedAggregator",
    "AccumulateWeightedAggregator",
    "PTFileModelPersistor",
    "FullModelShareableGenerator",
    "IntimeModelSelectionHandler",
    "ClientTrainer",
    "PTModelReaderWriter",
    "ClientValidator",
    "MONAITrainer",
    "FederatedLearner",
    "ScatterAndGather",
    "CrossSiteModelEval",
    "CyclicController",
    "GlobalModelEval",
    "PercentilePrivacy",
    "PercentileProtocol",
    "SVTPrivacy",
    "SVTProtocol",
    "LaplacianProtocol",
    "ExcludeVars",
    "ConvertWeights",
    "HEModelEncryptor",
    "HEModelDecryptor",
    "HEPTModelReaderWriter",
    "HEEvalDecryptor",
    "HEInTimeAccumulateWeightedAggregator",
    "HEModelShareableGenerator",
    "HEPTFileModelPersistor",
    "HEModelSerializeFilter",
    "Dice",
    "Adam",
    "DecayLRonStep",
    "SegmAhnet3D",
    "CacheDataset",
    "CheckpointLoader",
    "LrScheduleHandler",
    "ValidationHandler",
    "StatsHandler",
    "TensorBoardStatsHandler",
    "SupervisedTrainer",
    "SupervisedEvaluator",
    "SlidingWindowInferer",
    "CheckpointSaver",
    "MeanDice",
    "MetricsSaver",
    "MMARHandler",
    "MMARStatsHandler",
    "MMARTensorboardHandler",
    "MMARExecutor",
    "ReinforcementController",
    "PyTorchInference",
    "TritonInference",
    "Restored",
    "ExtremePointsd",
    "BoundingBoxd",
    "LargestCCd",
    "Writer",
    "Spacingd",
    "AddGuidanceFromPointsd",
    "SpatialCropGuidanced",
    "Resized",
    "NormalizeIntensityd",
    "AddGuidanceSignald",
    "UNet",
    "DenseNet121",
    "AHNet",
    "SegResNet",
]
"""Every component of an MMAR that Clara's notebooks and documents name, of 3.1 and 4.0."""


def entries() -> Iterator[tuple[ComponentRole, str, Entry]]:
    for role, names in TABLE.items():
        for name, entry in names.items():
            yield role, name, entry


def row(name: str, entry: Entry) -> str:
    """A name's line in the page."""
    match entry:
        case Mapped():
            renamed = ", ".join(f"`{old}` is `{new}`" for old, new in entry.renamed.items() if old not in SAID)
            dropped = ", ".join(f"`{each}`" for each in entry.dropped)
            more = [entry.remark, renamed, f"without {dropped}" if dropped else ""]
            return f"| `{name}` | `{entry.target}` | {'; '.join(each for each in more if each)} |"
        case LeftOut():
            return f"| `{name}` | left out | {entry.why} |"
        case Refused():
            return f"| `{name}` | refused | {entry.advice} |"


def title(role: ComponentRole) -> str:
    """The heading of a role's table."""
    return role[0].upper() + role[1:]


def table(role: ComponentRole) -> list[str]:
    return [row(name, entry) for name, entry in sorted(TABLE[role].items(), key=lambda pair: pair[0].lower())]


@pytest.mark.parametrize("role", ComponentRole)
def test_the_page_has_the_whole_table(role: ComponentRole) -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^### {re.escape(title(role))}$\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert [line for line in section[1].splitlines() if line.startswith("| `")] == table(role)


def test_every_name_that_clara_documents_is_known() -> None:
    known = {name for _, name, _ in entries()}
    assert set(NAMED) - known == set()


@pytest.mark.parametrize(
    "entry", [pytest.param(entry, id=name) for _, name, entry in entries() if isinstance(entry, Mapped)]
)
def test_what_is_mapped_exists_and_takes_the_arguments(entry: Mapped) -> None:
    module = ConfigComponent({"_target_": entry.target}).resolve_module_name()
    target = resolve(entry.target)
    assert inspect.isclass(target)
    assert module.endswith(entry.target.rpartition(".")[2])
    assert target.__name__ == module.rpartition(".")[2]
    adapted = set(entry.renamed.values()) if entry.adapt is None else set()
    assert Installed().unknown(entry.target, {*entry.defaults, *adapted}) == []


@pytest.mark.parametrize(
    "role", [role for role in ComponentRole if role not in (ComponentRole.FEDERATED, ComponentRole.ANNOTATION)]
)
def test_advice_names_something_that_exists(role: ComponentRole) -> None:
    for name, entry in TABLE[role].items():
        if isinstance(entry, Refused):
            word = re.match(r"\w+", entry.advice)
            assert word is not None
            assert any(Installed().find(each, word[0]) for each in ComponentRole), name


def test_names_are_found_in_the_role_that_they_play() -> None:
    installed = Installed()
    assert installed.find(ComponentRole.LOSS, "GeneralizedDiceLoss") == "GeneralizedDiceLoss"
    assert installed.find(ComponentRole.LOSS, "L1Loss") == "torch.nn.L1Loss"
    assert installed.find(ComponentRole.OPTIMIZER, "AdamW") == "torch.optim.AdamW"
    assert installed.find(ComponentRole.SCHEDULE, "LinearLR") == "torch.optim.lr_scheduler.LinearLR"
    assert installed.find(ComponentRole.METRIC, "Accuracy") == "ignite.metrics.Accuracy"
    assert installed.find(ComponentRole.TRANSFORM, "DiceLoss") is None
    assert installed.find(ComponentRole.DATASET, "load_decathlon_datalist") is None
    assert installed.find(ComponentRole.FEDERATED, "Anything") is None
    assert "RandSpatialCropd" in installed.nearest(ComponentRole.TRANSFORM, "RandSpatialCropD3")
    assert installed.unknown("DiceLoss", {"softmax", "sharpness"}) == ["sharpness"]
