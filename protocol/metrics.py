"""Which way a metric is better, by its name: a closed list of common words; of every other name a person has to say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

Direction = Literal["max", "min"]
"""Whether more or less of something is better."""

_LESS = frozenset(
    (
        *("loss", "losses", "error", "errors", "err", "mae", "mse", "rmse", "mape", "smape", "msle", "rmsle", "nll"),
        *("perplexity", "ppl", "hausdorff", "hd", "assd", "asd", "distance", "bce", "crossentropy", "entropy", "brier"),
        *("ece", "wer", "cer", "fpr", "fnr", "fid", "lpips", "deviance", "divergence", "kl", "regret", "cost"),
    )
)
_MORE = frozenset(
    (
        *("accuracy", "acc", "dice", "dsc", "auc", "auroc", "rocauc", "auprc", "prauc", "f1", "f2", "fbeta", "f1score"),
        *("iou", "miou", "jaccard", "precision", "recall", "sensitivity", "specificity", "map", "ap", "kappa", "mcc"),
        *("r2", "psnr", "ssim", "bleu", "rouge", "ndcg", "mrr", "ppv", "npv", "tpr", "tnr", "likelihood", "similarity"),
        *("correlation", "pearson", "spearman", "concordance", "cindex"),
    )
)
_PAIRS = ("false_positive", "false_positives", "false_negative", "false_negatives", "cross_entropy", "mean_squared")
"""Two words that are less as better together."""
_ENDINGS = ("loss", "error", "accuracy", "dice", "iou", "auroc", "auc", "rmse", "mse", "mae", "recall", "perplexity")
"""What names end in that run their words together, such as valloss and meanIoU."""
_WHOLE = frozenset(
    (
        *("score", "mean", "avg", "average", "macro", "micro", "weighted", "coefficient", "index", "rate", "value"),
        *("overall", "all", "total", "roc", "pr", "loss", "error", "accuracy"),
    )
)
"""Last words of names that mean the whole, not one class of it."""
_TOLD = 16
"""Metrics that a line of a log holds."""
_WORDS = re.compile(r"[A-Za-z0-9]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def direction_of(name: str) -> Direction | None:
    """Whether more or less of a metric is better; None if its name does not say so.

    A word for an error counts before one for a merit (`dice_loss` is a loss). `neg_` before it turns it round, as in
    scikit-learn's `neg_mean_squared_error`; `negative` does so with a likelihood, and with others it may mean a class.
    """
    whole = [word.lower() for word in _WORDS.findall(name)]
    words = [*whole, *(part.lower() for word in _WORDS.findall(name) for part in _HUMP.split(word))]
    found = _found(words, whole)
    if found is None or "false" in words:  # `false_negative_rate` negates nothing
        return found
    if "negative" in words:
        return "min" if "likelihood" in words else None
    if not {"neg", "minus"} & set(words):
        return found
    return None if whole[-1] in ("neg", "minus") else "max" if found == "min" else "min"


def _found(words: list[str], whole: list[str]) -> Direction | None:
    known = {*words, *(word.rstrip("0123456789") for word in words)}
    endings = {ending for word in whole for ending in _ENDINGS if word.endswith(ending)}
    joined = "_".join(whole)
    if known & _LESS or endings & _LESS or any(pair in joined for pair in _PAIRS):
        return "min"
    return "max" if known & _MORE or endings & _MORE else None


def key_of(names: Iterable[str]) -> str:
    """The metric by which versions are compared where nobody named one: the first, by its name, that says how good a
    model is, or else one that says how bad; empty if no name says either.

    Where there is one for each class (`dice_liver`, `dice_spleen`), none of these stands for the whole.
    """
    every = sorted(names)
    parts = [name for name, stem in zip(every, map(_stem, every), strict=True) if stem]
    several = {stem for stem in map(_stem, parts) if sum(_stem(other) == stem for other in parts) > 1}
    ranked = [(direction_of(name), name) for name in every if _stem(name) not in several]
    return next((name for wanted in ("max", "min") for way, name in ranked if way == wanted), "")


def _stem(name: str) -> str:
    """Of a metric that may be one class's the metric's own name; empty for others."""
    words = _WORDS.findall(name)
    stem = "_".join(words[:-1])
    return stem if words and words[-1].lower() not in _WHOLE and direction_of(stem) else ""


def told_of(metrics: Mapping[str, float]) -> dict[str, object]:
    """What a line of a log tells of metrics: the loss by itself, the others beside it, rounded."""
    rounded = {name: float(f"{value:.5g}") for name, value in sorted(metrics.items())}
    loss = {name: rounded.pop(name) for name in ("loss",) if name in rounded}
    others = dict(list(rounded.items())[:_TOLD])
    return {**loss, **({"metrics": others} if others else {})}


def signed_key(names: Iterable[str]) -> str:
    """The same as `key_of` in the way a trainer's `key_metric` says it: with a minus before it where less is better."""
    key = key_of(names)
    return f"-{key}" if direction_of(key) == "min" else key
