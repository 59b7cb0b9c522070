"""Batches of every form, data without a length, and models that bring their own loss: what reaches model and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from protocol.errors import ConfigError, DataError, Diverged, TrainingError
from tests.support.training import control, form
from worker.api.trainer import TrainResult
from worker.api.weights import Weights
from worker.trainers.initial import spec_and_payload
from worker.trainers.torch import TorchTrainer, accuracy

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
Y = (X[:, 0] > 0).long()
mse = nn.functional.mse_loss
entropy = nn.functional.cross_entropy


def base_of(which: TorchTrainer) -> Weights:
    spec, payload = spec_and_payload(which)
    recorded = list(payload)
    return Weights(spec, lambda: iter(recorded))


def train(which: TorchTrainer, **changes: Any) -> TrainResult:
    return which.train(base_of(which), control(**changes))


class Listing(list[Any]):
    """A dataset of anything."""


class Two(nn.Module):
    """Takes one or two inputs, and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.called: set[tuple[Any, ...]] = set()

    def forward(self, image: Any, mask: Tensor | None = None) -> Tensor:
        """Scores of two classes."""
        first = image["x"] if isinstance(image, dict) else image[0] if isinstance(image, list) else image
        self.called.add((type(image).__name__, mask is not None))
        scores: Tensor = self.layer(first if mask is None else first + mask)
        return scores


class Named(NamedTuple):
    inputs: Tensor
    target: Tensor


FORMS: dict[str, tuple[Callable[[int], Any], tuple[str, bool], Any]] = {
    "pair": (lambda i: (X[i], Y[i]), ("Tensor", False), None),
    "pair in a list": (lambda i: [X[i], Y[i]], ("Tensor", False), None),
    "pair by name": (lambda i: Named(X[i], Y[i]), ("Tensor", False), None),
    "pair with a tuple inside": (lambda i: ((X[i], X[i]), Y[i]), ("list", False), None),
    "pair with a mapping inside": (lambda i: ({"x": X[i]}, Y[i]), ("dict", False), None),
    "three": (lambda i: (X[i], X[i], Y[i]), ("Tensor", True), None),
    "mapping": (lambda i: {"image": X[i], "label": Y[i]}, ("Tensor", False), None),
    "mapping with another word": (lambda i: {"whatever": X[i], "labels": Y[i]}, ("Tensor", False), None),
    "mapping of three": (lambda i: {"image": X[i], "mask": X[i], "target": Y[i]}, ("Tensor", True), None),
    "prepared": (lambda i: {"a": X[i], "b": Y[i]}, ("Tensor", False), lambda b: (b["a"], b["b"])),
    "prepared arguments": (lambda i: (Y[i], X[i]), ("Tensor", True), lambda b: ((b[1], b[1]), b[0])),
    "prepared keywords": (lambda i: (Y[i], X[i]), ("Tensor", True), lambda b: ({"mask": b[1], "image": b[1]}, b[0])),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_any_form_reaches_model_and_loss(form: str) -> None:
    make, called, prepare = FORMS[form]
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append((outputs.shape, targets.tolist()))
        return entropy(outputs, targets)

    model = Two()
    data = Listing(make(i) for i in range(len(Y)))
    which = TorchTrainer(model, data, loss, batch_size=5, prepare_batch=prepare, evaluate_on=data)
    result = train(which)
    assert (result.steps, result.examples, model.called) == (4, 20, {called})
    assert sorted(target for _, targets in seen for target in targets) == sorted(Y.tolist())
    found = which.evaluate(base_of(which), control())
    assert found.examples == 20
    assert found.metrics.keys() == {"loss", "accuracy"}


@pytest.mark.parametrize("alone", [lambda i: X[i], lambda i: (X[i],)])
def test_a_lone_tensor_is_its_own_target(alone: Callable[[int], Any]) -> None:
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return mse(outputs, targets)

    train(TorchTrainer(nn.Linear(4, 4), Listing(alone(i) for i in range(20)), loss, batch_size=20))
    assert {tuple(row.tolist()) for row in seen[0]} == {tuple(row.tolist()) for row in X}


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ({"image": X[0], "mask": X[0]}, r"keys \['image', 'mask'\], of which exactly one .* prepare_batch"),
        (
            {"image": X[0], "label": Y[0], "start": Y[0]},
            r"Two is called with image, start of a batch: .*'start'; leave out of the examples",
        ),
        ({"image": X[0], "label": Y[0], "y": Y[0]}, r"keys \['image', 'label', 'y'\]"),
    ],
)
def test_a_mapping_without_clear_targets_says_what_to_give(batch: dict[str, Tensor], told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        train(TorchTrainer(Two(), Listing([batch] * 3), entropy))


class Stream(IterableDataset[Any]):
    """Examples one after the other; nobody knows how many."""

    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter((X[i], Y[i]) for i in range(self.count))


class Once(IterableDataset[Any]):
    """Can be gone through once."""

    def __init__(self) -> None:
        self.rest = iter([(X[i], Y[i]) for i in range(20)])

    def __iter__(self) -> Iterator[Any]:
        return self.rest


@settings(max_examples=30)
@given(count=st.integers(1, 20), size=st.integers(1, 7), steps=st.none() | st.integers(1, 12), epochs=st.integers(1, 3))
def test_data_without_a_length_give_as_many_steps_and_examples_as_were_asked_for(
    count: int, size: int, steps: int | None, epochs: int
) -> None:
    limits: dict[str, Any] = {"local_steps": steps} if steps else {"epochs": epochs}
    which = TorchTrainer(nn.Linear(4, 2), Stream(count), entropy, batch_size=size, **limits)
    result = train(which)
    assert result.steps == (steps or epochs * -(-count // size))
    assert result.examples == (min(count, size * steps) if steps else count)


def test_data_that_can_be_gone_through_once_are_not_enough_for_more() -> None:
    which = TorchTrainer(nn.Linear(4, 2), Once(), entropy, batch_size=10, local_steps=5)
    with pytest.raises(DataError, match="gave 2 batches and then none; an iterable dataset has to begin anew"):
        train(which)
    with pytest.raises(DataError, match="not a single batch"):
        train(which)


def test_a_loader_of_the_sites_own_is_used_as_it_is_and_shuffles_by_the_seed() -> None:
    def which(**more: Any) -> TorchTrainer:
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True, **more)
        return TorchTrainer(nn.Linear(4, 2), loader, entropy, evaluate_on=loader)

    for more in ({}, {"generator": torch.Generator()}):
        same, again, other = (train(which(**more), seed=seed).weights["weight"].copy() for seed in (1, 1, 2))
        np.testing.assert_array_equal(same, again)
        assert not np.array_equal(same, other)
    result = train(which(drop_last=True))
    assert (result.steps, result.examples) == (3, 20)
    assert which().evaluate(base_of(which()), control()).examples == 20
    with pytest.raises(TrainingError, match="sets batch_size, but this trainer was given a DataLoader"):
        train(which(), task={"batch_size": 3})
    nothing = DataLoader(TensorDataset(X[:3], Y[:3]), batch_size=4, drop_last=True)
    with pytest.raises(DataError, match="not a single batch"):
        train(TorchTrainer(nn.Linear(4, 2), nothing, entropy))


def test_what_no_batches_come_from_is_refused() -> None:
    never: Any = iter([(X[0], Y[0])])
    with pytest.raises(ConfigError, match="is a list_iterator; give one with a length and items"):
        TorchTrainer(nn.Linear(4, 2), never, entropy)
    with pytest.raises(ConfigError, match="a Stream cannot be divided among sites"):
        TorchTrainer(nn.Linear(4, 2), Stream(), entropy).holdings()


def test_one_example_is_no_batch_for_batchnorm() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    for which in (
        TorchTrainer(model, TensorDataset(X[:1], Y[:1]), entropy),
        TorchTrainer(model, TensorDataset(X, Y), entropy, batch_size=1),
        TorchTrainer(model, Stream(9), entropy, batch_size=8),
    ):
        with pytest.raises(DataError, match="a batch has a single example, by which BatchNorm cannot be trained"):
            train(which)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda out, y: entropy(out, y, reduction="none"), r"a tensor of shape \[5\]; it has to be one number"),
        (lambda out, y: entropy(out.detach(), y), "depends on no parameter that is trained"),
    ],
)
def test_a_loss_that_teaches_nothing_is_named(loss: Any, told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        train(TorchTrainer(nn.Linear(4, 2), TensorDataset(X, Y), loss, batch_size=5))


def test_a_model_that_is_all_frozen_is_evaluated_and_not_trained() -> None:
    data = TensorDataset(X, Y)
    which = TorchTrainer(nn.Linear(4, 2).requires_grad_(False), data, entropy, evaluate_on=data)
    assert which.evaluate(base_of(which), control()).examples == 20
    with pytest.raises(TrainingError, match="Linear has no parameter that is trained"):
        train(which)
    with torch.device("meta"):
        hollow = nn.Linear(4, 2)
    with pytest.raises(ConfigError, match="Linear has no values yet"):
        TorchTrainer(hollow, data, entropy)


def test_the_last_loss_is_always_looked_at() -> None:
    state = {"step": 0}

    def loss(out: Tensor, _: Tensor) -> Tensor:
        state["step"] += 1
        return (out * (float("nan") if state["step"] == 299 else 1.0)).sum()

    with pytest.raises(Diverged, match="after 299 steps"):
        train(TorchTrainer(nn.Linear(4, 2), TensorDataset(X, Y), loss, local_steps=299))


def test_memory_that_an_optimizer_exchanges_is_read_where_it_is() -> None:
    class Exchanging(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for each in group["params"]:
                    each.data = each.data - group["lr"] * each.grad

    which = TorchTrainer(nn.Linear(4, 2), TensorDataset(X, Y), entropy, lr=0.1, optimizer=Exchanging)
    spec, payload = spec_and_payload(which)
    recorded = list(payload)
    assert form(which, spec, lambda: iter(recorded)).delta["weight"].any()


class Fusing(nn.Linear):
    """A low-rank adapter that adds itself to its layer's weight while it evaluates."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.adapter = nn.Parameter(torch.ones(2, 4))
        self.fused = False

    def train(self, mode: bool = True) -> Fusing:
        super().train(mode)
        if self.fused == mode:
            self.weight.data += self.adapter.data * (-1 if mode else 1)
            self.fused = not mode
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """With the adapter, once."""
        outputs: Tensor = super().forward(inputs)
        return outputs if self.fused else outputs + inputs @ self.adapter.T


def test_an_adapter_that_fuses_itself_to_evaluate_trains_from_the_base_all_the_same() -> None:
    data = TensorDataset(X, Y)

    def which() -> TorchTrainer:
        torch.manual_seed(0)
        return TorchTrainer(Fusing(), data, entropy, lr=0.1, evaluate_on=data)

    base = base_of(which())
    want = {name: array.copy() for name, array in which().train(base, control()).weights.items()}
    evaluating = which()
    first = evaluating.evaluate(base, control())
    assert evaluating.evaluate(base, control()).metrics == first.metrics
    for name, array in evaluating.train(base, control()).weights.items():
        np.testing.assert_array_equal(array, want[name])
    evaluating.evaluate(base, control())
    begun = np.frombuffer(b"".join(evaluating.initial())[-64:], np.float32)
    np.testing.assert_allclose(begun, np.frombuffer(b"".join(base._records())[-64:], np.float32), rtol=1e-5)


# ---- metrics


def test_a_class_that_no_example_has_is_left_out_of_a_metrics_mean() -> None:
    def dice(outputs: Tensor, targets: Tensor) -> Tensor:
        """Of three classes: none of class 2 in any batch, class 1 in some."""
        share = (targets == 1).float().mean()
        return torch.stack([torch.tensor(0.5), share / share, torch.tensor(float("nan"))])

    def never(outputs: Tensor, targets: Tensor) -> float:
        return float("nan")

    data = TensorDataset(X, torch.arange(20) // 10)  # the first two batches have no class 1
    metrics = {"dice": dice, "auc": never}
    which = TorchTrainer(nn.Linear(4, 2), data, entropy, batch_size=5, evaluate_on=data, metrics=metrics)
    with capture_logs() as logged:
        found = [which.evaluate(base_of(which), control()).metrics for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].keys() == {"loss", "dice"}
    assert found[0]["dice"] == pytest.approx(0.75)
    assert [(each["event"], each["metric"]) for each in logged if "metric" in each] == [("metric.left_out", "auc")]


def test_nothing_is_left_out_of_a_loss() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return entropy(outputs, targets) * (float("nan") if 3 in targets else 1.0)

    data = TensorDataset(X, torch.arange(20) % 4)
    which = TorchTrainer(nn.Linear(4, 4), data, loss, batch_size=3, evaluate_on=data)
    assert "loss" not in which.evaluate(base_of(which), control()).metrics


def test_examples_that_a_loss_leaves_out_do_not_count_for_the_accuracy() -> None:
    scores = torch.eye(3)
    assert float(accuracy(scores, torch.tensor([0, 2, -100]))) == 0.5
    assert accuracy(scores, torch.tensor([-100, -100, -100])).isnan()


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


SHAPES: dict[str, tuple[Any, Callable[[int], Tensor], bool]] = {
    "each with each": (mse, lambda i: X[i, 0], True),
    "a loss of one's own": (squared, lambda i: X[i, 0], True),
    "a sum": (lambda out, y: mse(out, y, reduction="sum") / len(y), lambda i: X[i, 0], True),
    "one shape": (mse, lambda i: X[i, :1], False),
    "squeezed by the loss": (lambda out, y: mse(out.squeeze(1), y), lambda i: X[i, 0], False),
    "unsqueezed by the loss": (lambda out, y: squared(out, y[:, None]), lambda i: X[i, 0], False),
    "any shape by the loss": (lambda out, y: squared(out.view_as(y), y), lambda i: X[i, 0], False),
    "no mean of examples": (lambda out, y: (out[:, 0].std() - y.std()) ** 2, lambda i: X[i, 0], False),
}


@pytest.mark.parametrize("what", SHAPES)
def test_a_loss_that_compares_each_example_with_each_is_refused(what: str) -> None:
    loss, target, refused = SHAPES[what]
    which = TorchTrainer(nn.Linear(4, 1), Listing((X[i], target(i)) for i in range(20)), loss, batch_size=5)
    if refused:
        with pytest.raises(
            TrainingError, match=r"gives \[5, 1\] and the targets are \[5\], .* such as outputs.squeeze"
        ):
            train(which)
    else:
        assert train(which).steps == 4


# ---- models that bring their loss: stand-ins with the interfaces of Hugging Face and Lightning


@dataclass
class Answer:
    """Like an output of a Hugging Face model."""

    loss: Tensor | None
    logits: Tensor


class Speaking(nn.Module):
    """Like a Hugging Face model: called by names, tells its loss where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, input_values: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Answer:
        """Loss and scores."""
        logits = self.layer(input_values * attention_mask)
        return Answer(None if labels is None else entropy(logits, labels), logits)


def spoken(*, labels: bool = True) -> Listing:
    return Listing(
        {"input_values": X[i], "attention_mask": torch.ones(4), **({"labels": Y[i]} if labels else {})}
        for i in range(20)
    )


def test_a_model_that_tells_its_own_loss_needs_none() -> None:
    which = TorchTrainer(Speaking(), spoken(), lr=0.5, epochs=5, evaluate_on=spoken())
    before = which.evaluate(base_of(which), control()).metrics
    result = train(which)
    after = which.evaluate(base_of(which), control()).metrics
    assert (result.steps, result.examples) == (5, 20)
    assert before.keys() == {"loss", "accuracy"}
    assert after["loss"] < before["loss"]
    named = TorchTrainer(Speaking(), spoken(), evaluate_on=spoken(), metrics={"share": accuracy})
    assert named.evaluate(base_of(named), control()).metrics.keys() == {"loss", "share"}


def test_a_model_without_a_loss_of_its_own_says_that_it_wants_one() -> None:
    pictures = TensorDataset(X)
    for model, data in ((Speaking(), spoken(labels=False)), (nn.Linear(4, 2), pictures)):
        with pytest.raises(TrainingError, match="without a `loss`; give TorchTrainer a loss"):
            train(TorchTrainer(model, data))


class Lit(nn.Module):
    """Like a LightningModule: its steps, its optimizer, and what it logs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.made = 0

    def log(self, name: str, value: Any, **how: Any) -> None:
        raise RuntimeError("wants a trainer")

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.layer(inputs)
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        loss = entropy(self(inputs), targets)
        self.log("train_loss", loss, on_step=True)
        return {"loss": loss} if batch_idx % 2 else loss

    def validation_step(self, batch: Any) -> None:
        inputs, targets = batch
        self.log("val/loss", entropy(self(inputs), targets), prog_bar=True)
        self.log("lr", 0.1)

    def configure_optimizers(self) -> Any:
        self.made += 1
        optimizer = torch.optim.SGD(self.parameters(), lr=0.25)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


class Counting:
    """Like a metric of torchmetrics."""

    def __init__(self) -> None:
        self.right = self.seen = 0

    def compute(self) -> Tensor:
        return torch.tensor(self.right / self.seen)

    def reset(self) -> None:
        self.right = self.seen = 0


class Measuring(Lit):
    """Logs a metric with a state, and something at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.counting = Counting()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        self.counting.right += int((self(inputs).argmax(1) == targets).sum())
        self.counting.seen += len(targets)
        self.log("accuracy", self.counting)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"seen": self.counting.seen, "names": "none"})


Lit.log_dict = Lit.log


def lit(model: nn.Module, **more: Any) -> TorchTrainer:
    data = TensorDataset(X, Y)
    return TorchTrainer(model, data, batch_size=6, evaluate_on=data, **more)


def test_a_lightning_module_is_trained_by_its_own_steps_and_optimizer() -> None:
    model = Lit()
    which = lit(model)
    with capture_logs() as logged:
        result = train(which)
    assert result.steps == 4
    assert model.made == 1
    assert [each["event"] for each in logged if each["log_level"] == "warning"] == ["schedule.left_out"]
    found = which.evaluate(base_of(which), control())
    assert found.examples == 20
    assert found.metrics.keys() == {"val_loss", "lr"}
    assert found.metrics["val_loss"] == pytest.approx(float(entropy(model(X), Y).detach()), rel=1e-5)
    with pytest.raises(RuntimeError, match="wants a trainer"):
        model.log("left", 1)
    slow = lit(Lit(), lr=1e-9)
    before = dict(base_of(slow).tensors())
    trained = train(slow).weights["layer.weight"]
    assert np.abs(trained - before["layer.weight"]).max() < 1e-6
    given = lit(Lit(), optimizer=torch.optim.Adam)
    train(given)
    assert given.model.made == 0


def test_metrics_with_a_state_and_those_of_the_end_are_told_once() -> None:
    model = Measuring()
    which = lit(model)
    base = base_of(which)
    for _ in range(2):
        found = which.evaluate(base, control()).metrics
        share = float((model(X).argmax(1) == Y).float().mean())
        assert found == {"accuracy": pytest.approx(share), "seen": 20.0}


def test_a_lightning_module_without_validation_tells_the_loss_of_its_training_step() -> None:
    class Bare(Lit):
        def validation_step(self, *given: Any) -> None:
            """Nothing, as the library's own."""

    which = lit(Bare())
    assert which.evaluate(base_of(which), control()).metrics.keys() == {"loss"}


def test_a_lightning_module_that_asks_for_its_librarys_trainer_is_told_that_there_is_none() -> None:
    class Attached(Lit):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("Attached is not attached to a `Trainer`.")

    with pytest.raises(TrainingError, match="Attached asks for Lightning's Trainer, and there is none here"):
        train(lit(Attached()))


def test_a_lightning_module_may_leave_batches_out_but_not_all() -> None:
    class Choosy(Lit):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) if batch_idx == self.wanted else None

    model = Choosy()
    model.wanted = 1
    assert train(lit(model)).steps == 1
    model.wanted = 99
    which = lit(model)
    spec, payload = spec_and_payload(which)
    recorded = list(payload)
    with pytest.raises(DataError, match="took 0 steps"):
        form(which, spec, lambda: iter(recorded))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"automatic_optimization": False}, "Lit steps its optimizers itself"),
        ({"metrics": {"accuracy": accuracy}}, "Lit has metrics of its own"),
    ],
)
def test_a_lightning_module_that_cannot_be_trained_here_is_refused(change: dict[str, Any], told: str) -> None:
    model = Lit()
    model.automatic_optimization = change.get("automatic_optimization", True)
    with pytest.raises(ConfigError, match=told):
        lit(model, metrics=change.get("metrics"))


@pytest.mark.parametrize("many", [True, False])
def test_optimizers_come_in_every_form_and_one_is_taken(many: bool) -> None:
    class Formed(Lit):
        def configure_optimizers(self) -> Any:
            one = torch.optim.SGD(self.parameters(), lr=0.1)
            return ([one, one] if many else [one]), []

    if not many:
        assert train(lit(Formed())).steps == 4
        return
    with pytest.raises(ConfigError, match="gives 2 optimizers; fledge takes one"):
        train(lit(Formed()))


class Hooked(Lit):
    """Scales what arrives, follows what is trained, and logs what is no mean."""

    def __init__(self) -> None:
        super().__init__()
        self.follower = nn.Linear(4, 2).requires_grad_(False)
        self.seen: list[float] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 0 + 7, batch[1]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.follower.weight.data.copy_(self.layer.weight.data)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(float(batch[0].mean()))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any) -> None:
        self.seen.append(float(batch[0].mean()))
        size = float(len(batch[1]))
        self.log("seen", size, reduce_fx="sum")
        self.log_dict({"least": size}, reduce_fx=min)
        self.log("most", size, reduce_fx=torch.max)
        self.log("mean", size)


def test_what_a_lightning_module_makes_of_a_batch_and_after_it_counts() -> None:
    data = TensorDataset(X, Y)
    model = Hooked()
    which = TorchTrainer(model, data, batch_size=8, evaluate_on=data)
    train(which)
    torch.testing.assert_close(model.follower.weight, model.layer.weight)
    for _ in range(2):
        found = which.evaluate(base_of(which), control()).metrics
        assert found == {"seen": 20.0, "least": 4.0, "most": 8.0, "mean": pytest.approx((8 * 8 + 8 * 8 + 4 * 4) / 20)}
    assert set(model.seen) == {7.0}


@pytest.mark.parametrize("hook", ["optimizer_step", "configure_gradient_clipping", "validation_epoch_end", "backward"])
def test_a_lightning_module_whose_hooks_nobody_would_call_is_refused(hook: str) -> None:
    own = type("Own", (Lit,), {hook: lambda self, *args: None})
    with pytest.raises(ConfigError, match=rf"^Own\.{hook} has its part .* only Lightning's Trainer calls it"):
        TorchTrainer(own(), TensorDataset(X, Y))
    theirs = type("Base", (Lit,), {hook: lambda self, *args: None, "__module__": "lightning.pytorch.core"})
    TorchTrainer(type("Module", (theirs,), {})(), TensorDataset(X, Y))
