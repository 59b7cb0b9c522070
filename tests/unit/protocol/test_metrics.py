"""Which way a metric is better, by its name."""

from __future__ import annotations

import pytest

from protocol.metrics import direction_of, key_of, signed_key, told_of

LESS = """loss val_loss valLoss train.loss dice_loss CrossEntropyLoss auc_loss error error_rate mae rmse_mm
perplexity ppl
hd95 hausdorff95 HausdorffDistance surface_distance cross_entropy log_loss brier_score negative_log_likelihood
neg_log_likelihood ece wer
false_positive_rate false_negative_rate MSE"""
MORE = """accuracy acc top5_acc accuracy:top1 val_mean_dice meanIoU mean_iou miou auc AUROC
roc_auc F1 f1-macro f1_score
r2 R2 mAP mAP50 specificity sensitivity recall precision psnr SSIM neg_mean_squared_error neg_val_loss
eval_neg_loss neg_wer log_likelihood cohen_kappa"""
UNSAID = """score tumour_burden heatmap lr epoch steps x 1 volume_ml true_negative_rate negative_class_loss
negative_dice accuracy_neg"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "min") for name in LESS.split()),
        *((name, "max") for name in MORE.split()),
        *((name, None) for name in UNSAID.split()),
    ],
)
def test_a_name_says_which_way_is_better_or_nothing(name: str, expected: str | None) -> None:
    assert direction_of(name) == expected


@pytest.mark.parametrize(
    ("names", "key", "signed"),
    [
        (["loss", "accuracy"], "accuracy", "accuracy"),
        (["loss", "weird"], "loss", "-loss"),
        (["weird"], "", ""),
        ([], "", ""),
        (["val_mean_dice", "auc", "loss"], "auc", "auc"),
        (["dice_liver", "dice_spleen", "loss"], "loss", "-loss"),
        (["dice_1", "dice_2", "dice_mean"], "dice_mean", "dice_mean"),
        (["VAL-F1-SCORE-Effusion", "VAL-F1-SCORE-Mass", "VAL_LOSS"], "VAL_LOSS", "-VAL_LOSS"),
        (["recall_0", "recall_1"], "", ""),
        (["val_auc", "val_dice", "loss", "-"], "val_auc", "val_auc"),
        (["val_accuracy", "val_auc", "val_loss"], "val_accuracy", "val_accuracy"),
        (["f1_score", "f1_macro", "accuracy_top1"], "accuracy_top1", "accuracy_top1"),
    ],
)
def test_versions_are_compared_by_a_merit_or_else_by_an_error(names: list[str], key: str, signed: str) -> None:
    assert key_of(names) == key_of(reversed(names)) == key
    assert signed_key(names) == signed


def test_a_line_of_a_log_tells_the_loss_and_a_few_others_rounded() -> None:
    assert told_of({"loss": 0.123456789, "dice": 0.5}) == {"loss": 0.12346, "metrics": {"dice": 0.5}}
    assert told_of({}) == {}
    found = told_of({f"m{i}": float(i) for i in range(200)})["metrics"]
    assert isinstance(found, dict)
    assert len(found) == 16
