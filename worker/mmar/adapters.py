"""Arguments of Clara's components that changed in more than name, as today's MONAI takes them."""

from __future__ import annotations

from collections.abc import Sequence

from worker.mmar.values import Config

_LAYERS_OF_PYRAMID = 4


def nifti(args: Config) -> Config:
    """Turning to the canonical orientation is the reader's, and only one of MONAI's can do it."""
    if args.get("as_closest_canonical") is not None:
        args.setdefault("reader", "NibabelReader")
    return args


def discrete(args: Config) -> Config:
    """`AsDiscrete`: the number of classes and the threshold were separate arguments with a switch each."""
    classes, level = args.pop("n_classes", None), args.pop("logit_thresh", 0.5)
    classes = args.pop("num_classes", classes)
    if (switch := args.pop("threshold_values", None)) is not None:
        args["threshold"] = _where(switch, level)
    if "to_onehot" in args:
        args["to_onehot"] = _where(args["to_onehot"], classes)
    return {name: value for name, value in args.items() if value is not None}


def _where(switch: object, value: object) -> object:
    """The value where the switch is on, for one key or for each; numbers, as today's MONAI has them, stay."""
    if isinstance(switch, list):
        values = value if isinstance(value, list) else [value] * len(switch)
        return [_where(on, each) for on, each in zip(switch, values, strict=False)]
    return (value if switch else None) if isinstance(switch, bool) else switch


def spacing(args: Config) -> Config:
    """Labels are resampled to the nearest value, as Clara does by itself."""
    if (keys := _labelled(args)) and "mode" not in args:
        args["mode"] = ["nearest" if key == "label" else "bilinear" for key in keys]
    return args


def resizing(args: Config) -> Config:
    """Likewise, for what resizes instead of resampling to a spacing."""
    if (keys := _labelled(args)) and "mode" not in args:
        args["mode"] = ["nearest" if key == "label" else "trilinear" for key in keys]
    return args


def _labelled(args: Config) -> Sequence[str]:
    keys = args.get("keys")
    keys = [keys] if isinstance(keys, str) else keys
    return keys if isinstance(keys, list) and "label" in keys else ()


def foreground(args: Config) -> Config:
    """Cropping to the foreground: by the first of the keys, unless one is named."""
    keys = args.get("keys", "image")
    return {"source_key": keys[0] if isinstance(keys, list) and keys else keys, **args}


def centred(args: Config) -> Config:
    """Means and deviations for each channel are lists."""
    if any(isinstance(args.get(name), list) for name in ("subtrahend", "divisor")):
        args.setdefault("channel_wise", True)
    return args


def pyramid(args: Config) -> Config:
    """AHNet's pyramid pooling, which was on or off."""
    if isinstance(switch := args.get("psp_block_num"), bool):
        args["psp_block_num"] = _LAYERS_OF_PYRAMID if switch else 0
    return args


def moments(args: Config) -> Config:
    """Adam's two decay rates are one argument."""
    if "beta1" in args or "beta2" in args:
        args["betas"] = [args.pop("beta1", 0.9), args.pop("beta2", 0.999)]
    return args


def dice(args: Config) -> Config:
    """3.1's Dice took probabilities, and labels as numbers unless told otherwise."""
    if args.pop("skip_background", False):
        args["include_background"] = False
    if args.pop("is_onehot_targets", False):
        args["to_onehot_y"] = False
    return args


def average(args: Config) -> Config:
    """3.1's metrics skip the background by an argument of the other sense."""
    if "skip_background" in args:
        args["include_background"] = not args.pop("skip_background")
    return args
