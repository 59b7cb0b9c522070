"""The table of component names: what becomes of each component of Clara 3.1 and 4.0 that is known here.

A name that is not in it passes as it is if MONAI (or torch, for its losses, optimizers and schedules) has it.
`docs/mmar.md` shows the table to people; a test keeps both the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from worker.mmar import adapters
from worker.mmar.entries import ComponentRole, Entry, LeftOut, Mapped, Refused
from worker.mmar.values import Config

_FIELDS = {"fields": "keys", "field": "keys"}
_RANDOM = {"probability": "prob"}
_WEIGHTS_FILE = "`--weights` of `fledge init-run` gives the weights of version 0"
_DOWNLOAD = {"pretrained": f"would download weights at every site; {_WEIGHTS_FILE}"}
_OLD_TENSORS = {"as_tensor_output": "MONAI's transforms give tensors today"}
_KERAS = {
    "weight_decay": "is an argument of torch's optimizers",
    "data_format": "torch has channels first",
    "pretrain_weight_name": f"{_WEIGHTS_FILE}; those of TensorFlow cannot be taken over",
    "final_activation": "is part of loss and post transforms in MONAI",
}
_TWO_NAMES = {"dimensions": "spatial_dims"}
_CONSOLE = LeftOut("`fledge ctl` commands runs; the worker obeys by itself")
_CODES = LeftOut("fledge encrypts what it sends; trained values hardly compress")
_HE = Refused(
    "homomorphic encryption: the aggregator sees updates in the clear, on the wire and in the store nobody does"
)
_NO_AUTOML = LeftOut("AutoML is no part of a training; config_automl.json is not read")
_NO_AIAA = LeftOut("annotation servers read config_aiaa.json; it is no part of a training")
_NOISE = "no filter here shares parts of an update; a site's worker.toml names the filters `clip` and `gaussian`"


def _old(
    target: str,
    *,
    also: Mapping[str, str] = {},
    dropped: Mapping[str, str] = {},
    defaults: Mapping[str, object] = {},
    adapt: Callable[[Config], Config] | None = None,
) -> Mapped:
    """A transform of 3.1, which calls keys fields."""
    return Mapped(target, {**_FIELDS, **also}, dropped, defaults, adapt)


def _same(*names: str) -> dict[str, Entry]:
    return {name: Mapped(name) for name in names}


def _crop(args: Config) -> Config:
    return {"label_key": "label", **args}


_POS_NEG = _old(
    "RandCropByPosNegLabeld",
    also={"size": "spatial_size", "label_field": "label_key", "batch_size": "num_samples"},
    dropped={"batches_to_gen": "the number of crops is num_samples"},
    adapt=_crop,
)
_AHNET_31 = Mapped(
    "AHNet",
    renamed={"num_classes": "out_channels", "n_spatial_dim": "spatial_dims", "if_use_psp": "psp_block_num"},
    dropped={
        **_KERAS,
        "plane": "MONAI's AHNet has no plane",
        "if_from_scratch": f"networks begin with random weights; {_WEIGHTS_FILE}",
    },
    adapt=adapters.pyramid,
    remark="the same design, not the same tensors",
)
_CACHE = Mapped("CacheDataset", dropped={"cache_dir": "caches are in memory"}, defaults={"progress": False})

TRANSFORMS: Mapping[str, Entry] = {
    **_same(
        *("LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "CastToTyped", "ScaleIntensityRanged"),
        *("ScaleIntensityd", "NormalizeIntensityd", "CropForegroundd", "RandFlipd", "RandRotate90d"),
        *("RandRotated", "RandZoomd", "RandShiftIntensityd", "RandScaleIntensityd", "RandGaussianNoised"),
        *("Resized", "RepeatChanneld", "Activationsd"),
    ),
    "LoadNiftid": Mapped("LoadImaged", dropped=_OLD_TENSORS, adapt=adapters.nifti),
    "LoadPNGd": Mapped("LoadImaged"),
    "LoadNumpyd": Mapped("LoadImaged"),
    "AddChanneld": Mapped("EnsureChannelFirstd", defaults={"channel_dim": "no_channel"}),
    "AsChannelFirstd": Mapped("EnsureChannelFirstd", defaults={"channel_dim": -1}),
    "ToTensord": Mapped("EnsureTyped"),
    "Spacingd": Mapped("Spacingd", dropped={"meta_key_postfix": "spacing is part of the image"}),
    "Orientationd": Mapped("Orientationd", dropped={"meta_key_postfix": "orientation is part of the image"}),
    "RandCropByPosNegLabeld": Mapped("RandCropByPosNegLabeld", renamed={"size": "spatial_size"}),
    "RandSpatialCropd": Mapped("RandSpatialCropd", defaults={"random_size": True}),
    "RandSpatialCropSamplesd": Mapped("RandSpatialCropSamplesd", defaults={"random_size": True}),
    "RandAffined": Mapped("RandAffined", dropped=_OLD_TENSORS),
    "Rand3DElasticd": Mapped("Rand3DElasticd", dropped=_OLD_TENSORS),
    "SplitChanneld": Mapped("SplitDimd", renamed={"channel_dim": "dim"}),
    "AsDiscreted": Mapped("AsDiscreted", adapt=adapters.discrete),
    "Invertd": Mapped("Invertd", renamed={"loader": "transform"}),
    "SaveImaged": Mapped("SaveImaged", dropped={"output_dir": "is output_dir of the bundle"}),
    # 3.1
    "LoadNifti": _old("LoadImaged", adapt=adapters.nifti),
    "LoadPng": _old("LoadImaged"),
    "LoadJpg": _old("LoadImaged"),
    "ConvertToChannelsFirst": _old("EnsureChannelFirstd", defaults={"strict_check": False}),
    "ScaleByResolution": _old("Spacingd", also={"target_resolution": "pixdim"}, adapt=adapters.spacing),
    "ScaleToShape": _old("Resized", also={"target_shape": "spatial_size"}, adapt=adapters.resizing),
    "ScaleIntensityRange": _old("ScaleIntensityRanged"),
    "ScaleIntensityOscillation": _old(
        "RandScaleIntensityd", also={**_RANDOM, "magnitude": "factors"}, defaults={"prob": 1.0}
    ),
    "ScaleShiftIntensity": Refused("RandScaleIntensityd and RandShiftIntensityd, one after the other"),
    "NormalizeNonzeroIntensities": _old("NormalizeIntensityd", defaults={"nonzero": True}),
    "CenterData": _old("NormalizeIntensityd", adapt=adapters.centred),
    "AddGaussianNoise": _old("RandGaussianNoised", also=_RANDOM, defaults={"prob": 1.0}),
    "CropByPosNegRatio": _POS_NEG,
    "CropByPosNegRatioLabelOnly": _POS_NEG,
    "FastCropByPosNegRatio": _POS_NEG,
    "FastPosNegRatioCropROI": _POS_NEG,
    "CropFixedSizeRandomCenter": _old(
        "RandSpatialCropd", also={"size": "roi_size"}, defaults={"random_size": False, "random_center": True}
    ),
    "CropRandomSizeWithDisplacement": Refused("RandScaleCropd, which moves the crop as far as the image allows"),
    "CropForegroundObject": _old("CropForegroundd", adapt=adapters.foreground),
    "RandomAxisFlip": _old("RandAxisFlipd", also=_RANDOM),
    "RandomSpatialFlip": _old("RandAxisFlipd", also=_RANDOM),
    "RandomZoom": _old("RandZoomd", also={**_RANDOM, "lower_limits": "min_zoom", "upper_limits": "max_zoom"}),
    "RandomRotate2D": Refused("RandRotated, whose angles are radians"),
    "RandomRotate3D": Refused("RandRotated, whose angles are radians"),
    "RepeatChannel": _old("RepeatChanneld", also={"repeat_times": "repeats"}),
    "ThresholdValues": _old("AsDiscreted"),
    "ArgmaxAcrossChannels": _old("AsDiscreted", defaults={"argmax": True}),
    "KeepLargestCC": _old("KeepLargestConnectedComponentd"),
    "RestoreOriginalShape": Refused("Invertd, which goes all transforms back"),
    "CopyProperties": LeftOut("MONAI's images carry their properties"),
    "AddExtremePointsChannel": Refused("AddExtremePointsChanneld"),
}
LOSSES: Mapping[str, Entry] = {
    **_same("DiceLoss", "FocalLoss"),
    "DiceCELoss": Mapped("DiceCELoss", renamed={"ce_weight": "weight"}),
    "CrossEntropyLoss": Mapped("torch.nn.CrossEntropyLoss"),
    "BCEWithLogitsLoss": Mapped("torch.nn.BCEWithLogitsLoss"),
    "Dice": Mapped(
        "DiceLoss",
        renamed={"top_smooth": "smooth_nr", "bottom_smooth": "smooth_dr", "label_weights": "weight"},
        defaults={"to_onehot_y": True},
        adapt=adapters.dice,
    ),
    "BinaryClassificationLoss": Mapped("torch.nn.BCEWithLogitsLoss"),
    "CrossEntropy": Refused("DiceCELoss with lambda_dice 0, or torch's CrossEntropyLoss for classes of whole images"),
    "Focal": Refused("FocalLoss"),
}
NETWORKS: Mapping[str, Entry] = {
    "UNet": Mapped("UNet", renamed=_TWO_NAMES),
    "BasicUNet": Mapped("BasicUNet", renamed=_TWO_NAMES),
    "AHNet": Mapped("AHNet", renamed=_TWO_NAMES, dropped=_DOWNLOAD),
    "SegResNet": Mapped("SegResNet", renamed=_TWO_NAMES),
    "SegResNetVAE": Refused("SegResNet: the trainer of a bundle takes networks with one output"),
    "DynUNet": Mapped("DynUNet", renamed=_TWO_NAMES),
    "VNet": Mapped("VNet", renamed=_TWO_NAMES),
    "DenseNet121": Mapped(
        "DenseNet121",
        renamed={**_TWO_NAMES, "num_classes": "out_channels", "n_spatial_dim": "spatial_dims"},
        dropped={**_DOWNLOAD, **_KERAS},
    ),
    "SegmAhnet3D": _AHNET_31,
    "SegAhnet": _AHNET_31,
    "SegResnet": Mapped(
        "SegResNet",
        renamed={"num_classes": "out_channels", "n_spatial_dim": "spatial_dims", "groups": "num_groups"},
        dropped=_KERAS,
        remark="the same design, not the same tensors",
    ),
    "Unet": Refused("UNet, whose layers are other ones"),
}
OPTIMIZERS: Mapping[str, Entry] = {
    "Adam": Mapped("torch.optim.Adam", renamed={"epsilon": "eps"}, adapt=adapters.moments),
    "SGD": Mapped("torch.optim.SGD"),
    "Momentum": Mapped("torch.optim.SGD", defaults={"momentum": 0.9}),
    "Novograd": Mapped("Novograd"),
    "NovoGrad": Mapped("Novograd", renamed={"epsilon": "eps"}, adapt=adapters.moments),
    "RMSProp": Refused("RMSprop"),
}
SCHEDULES: Mapping[str, Entry] = {
    "StepLR": Mapped("torch.optim.lr_scheduler.StepLR"),
    "DecayLRonStep": Mapped(
        "torch.optim.lr_scheduler.StepLR",
        renamed={"decay_ratio": "gamma", "decay_freq": "step_size"},
        remark="its steps are iterations",
    ),
    "ReducePoly": Refused("PolynomialLR"),
    "ReduceCosine": Refused("CosineAnnealingLR"),
    "ReduceOnPlateau": Refused("ReduceLROnPlateau"),
}
DATASETS: Mapping[str, Entry] = {
    "Dataset": Mapped("Dataset"),
    "CacheDataset": _CACHE,
    "SmartCacheDataset": Mapped("SmartCacheDataset", defaults={"progress": False}),
    "PersistentDataset": Refused("CacheDataset: it would leave copies of images on a disk"),
    # 3.1
    "ImagePipeline": Mapped("Dataset"),
    "SegmentationImagePipeline": Mapped("Dataset"),
    "ClassificationImagePipeline": Mapped("Dataset"),
    "SegmentationImagePipelineWithCache": _CACHE,
    "ClassificationImagePipelineWithCache": _CACHE,
}
LOADERS: Mapping[str, Entry] = {
    "DataLoader": Mapped("DataLoader", defaults={"num_workers": 0}),
    "ThreadDataLoader": Mapped("ThreadDataLoader"),
}
_WINDOWS = Mapped(
    "SlidingWindowInferer",
    renamed={"roi": "roi_size", "batch_size": "sw_batch_size"},
    dropped={"is_model_dynamic": "torch's networks take any size", "is_channels_first": "torch has channels first"},
)
_SIMPLE = Mapped("SimpleInferer")
INFERERS: Mapping[str, Entry] = {
    "SimpleInferer": _SIMPLE,
    "SlidingWindowInferer": Mapped("SlidingWindowInferer"),
    **dict.fromkeys(("TFSimpleInferer", "TRTSimpleInferer"), _SIMPLE),
    **dict.fromkeys(("ScanWindowInferer", "TFScanWindowInferer", "TRTScanWindowInferer"), _WINDOWS),
}
_OLD_METRIC = {"name": "", "is_key_metric": "", "field": "", "label_field": "", "stopping_metric": ""}
METRICS: Mapping[str, Entry] = {
    "MeanDice": Mapped(
        "MeanDice", dropped={"to_onehot_y": "post transforms do it", "sigmoid": "post transforms do it"}
    ),
    "ROCAUC": Mapped("ROCAUC", dropped={"to_onehot_y": "post transforms do it", "softmax": "post transforms do it"}),
    "Accuracy": Mapped("ignite.metrics.Accuracy"),
    "ComputeAverageDice": Mapped("MeanDice", dropped=_OLD_METRIC, adapt=adapters.average),
    "ComputeAUC": Mapped("ROCAUC", renamed={"auc_average": "average"}, dropped=_OLD_METRIC),
    "ComputeAccuracy": Mapped("ignite.metrics.Accuracy", dropped=_OLD_METRIC),
    "ComputeBinaryPreds": Refused("Accuracy, with AsDiscreted and a threshold among the post transforms"),
}
_SAVED = "models are kept by the federation; the bundle saves the network alone"
HANDLERS: Mapping[str, Entry] = {
    **_same("LrScheduleHandler", "StatsHandler"),
    "CheckpointLoader": Mapped("CheckpointLoader", dropped={"load_path": "models/model.pt", "load_dict": _SAVED}),
    "CheckpointSaver": Mapped(
        "CheckpointSaver",
        dropped={"save_dir": "is models", "save_dict": _SAVED},
        defaults={"key_metric_filename": "model.pt"},
    ),
    "ValidationHandler": Mapped("ValidationHandler", defaults={"interval": 1, "epoch_level": True}),
    "TensorBoardStatsHandler": Mapped("TensorBoardStatsHandler", dropped={"log_dir": "is output_dir of the bundle"}),
    "TensorBoardImageHandler": LeftOut("images of patients do not belong into logs"),
    "MetricsSaver": Mapped("MetricsSaver", dropped={"save_dir": "is output_dir of the bundle"}),
    "SegmentationSaver": Refused("SaveImaged among the post transforms"),
    "ClassificationSaver": LeftOut("predictions for patients do not belong into a training"),
}
ENGINES: Mapping[str, Entry] = _same("SupervisedTrainer", "SupervisedEvaluator")
_MEAN = LeftOut("strategy fedavg: the mean by examples")
_WEIGHTS = LeftOut("the worker reads and writes the network itself")
_SERVER = LeftOut("the aggregator keeps and publishes every version")
_DICTATED = LeftOut("the run's settings; the aggregator follows them")
FEDERATED: Mapping[str, Entry] = {
    **dict.fromkeys(("ModelAggregator", "AccumulateWeightedAggregator", "InTimeAccumulateWeightedAggregator"), _MEAN),
    **dict.fromkeys(("FullModelShareableGenerator", "ConvertWeights"), LeftOut("updates are always differences")),
    **dict.fromkeys(("PTFileModelPersistor", "TFModelSaver", "IntimeModelSelectionHandler"), _SERVER),
    **dict.fromkeys(("PTModelReaderWriter", "TFModelReaderWriter"), _WEIGHTS),
    **dict.fromkeys(("ClientTrainer", "FederatedLearner", "MONAITrainer"), LeftOut("trainer fledge.trainers.mmar")),
    **dict.fromkeys(
        ("ClientValidator", "TFModelValidator", "ValidateResultProcessor", "CrossSiteModelEval", "GlobalModelEval"),
        LeftOut("`evaluate` in the run's settings: sites evaluate every version"),
    ),
    "ScatterAndGather": _DICTATED,
    "CyclicController": Refused("strategy fedasync, which also takes one update at a time"),
    **dict.fromkeys(("IteratorNumberGenerator", "BestMetricGenerator"), LeftOut("updates say examples and metrics")),
    **dict.fromkeys(("ModelEncryptor", "ModelDecryptor", "DataCompressor", "DataDeCompressor"), _CODES),
    **dict.fromkeys(
        (
            *("TrainingCommandModule", "ValidationCommandModule", "ShellCommandModule", "SystemCommandModule"),
            *("StartClientProcessor", "ClientStatusProcessor", "AbortClientProcessor", "ShutdownClientProcessor"),
            *("DeployProcessor", "ValidateRequestProcessor", "ShellCommandProcessor", "DeleteRunNumberProcessor"),
            *("SysInfoProcessor", "RestartClientProcessor"),
        ),
        _CONSOLE,
    ),
    "ExcludeVars": LeftOut("`exclude` in a site's worker.toml"),
    **dict.fromkeys(("PercentileProtocol", "PercentilePrivacy"), Refused(_NOISE)),
    **dict.fromkeys(("SVTProtocol", "SVTPrivacy", "LaplacianProtocol"), Refused(_NOISE)),
    **dict.fromkeys(
        (
            *("HEModelEncryptor", "HEModelDecryptor", "HEPTModelReaderWriter", "HEEvalDecryptor"),
            *("HEInTimeAccumulateWeightedAggregator", "HEModelShareableGenerator", "HEPTFileModelPersistor"),
            "HEModelSerializeFilter",
        ),
        _HE,
    ),
}
ANNOTATION: Mapping[str, Entry] = {
    **dict.fromkeys(
        ("MMARHandler", "MMARStatsHandler", "MMARTensorboardHandler", "MMARExecutor", "ReinforcementController"),
        _NO_AUTOML,
    ),
    **dict.fromkeys(
        (
            *("PyTorchInference", "TritonInference", "Restored", "ExtremePointsd", "BoundingBoxd", "LargestCCd"),
            *("Writer", "AddGuidanceFromPointsd", "SpatialCropGuidanced", "AddGuidanceSignald"),
        ),
        _NO_AIAA,
    ),
}
TABLE: Mapping[ComponentRole, Mapping[str, Entry]] = {
    ComponentRole.TRANSFORM: TRANSFORMS,
    ComponentRole.LOSS: LOSSES,
    ComponentRole.NETWORK: NETWORKS,
    ComponentRole.OPTIMIZER: OPTIMIZERS,
    ComponentRole.SCHEDULE: SCHEDULES,
    ComponentRole.DATASET: DATASETS,
    ComponentRole.LOADER: LOADERS,
    ComponentRole.INFERER: INFERERS,
    ComponentRole.METRIC: METRICS,
    ComponentRole.HANDLER: HANDLERS,
    ComponentRole.ENGINE: ENGINES,
    ComponentRole.FEDERATED: FEDERATED,
    ComponentRole.ANNOTATION: ANNOTATION,
}
"""By role and name."""
