"""`fledge try` from end to end, with a trainer that needs neither torch nor scikit-learn."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fledge.process.foreground import interruptible, open_screen
from fledge.trial.federation import Scored
from fledge.trial.options import TrialOptions, asked
from fledge.trial.report import SiteReport, TrialReport, show, write
from fledge.trial.source import told
from fledge.trial.trial import run_trial, tried
from fledge.trial.view import TrialWatch
from protocol.errors import ConfigError, TrainingError

CODE = """
from pathlib import Path

import numpy as np
from fledge import Control, EvaluationResult, NumpyTrainer, TrainResult
from worker.api.division import Holdings


TRAINED, MEASURED = set(), set()


class Mean(NumpyTrainer):
    '''Learns the mean of its values.'''

    def __init__(self, values, classes=None):
        self.values, self.held_out, self.classes = np.array(values, float), [], classes
        self.model = {"mean": np.random.normal(size=1).astype(np.float32)}
        super().__init__(self.model, self.fit, examples=len(values), evaluate=self.measure)

    def fit(self, control):
        TRAINED.update(self.values)
        for step in range(5):
            control.check()
            value = np.random.choice(self.values)  # not its own dice: those of the process
            self.model["mean"] += 0.2 * (value - self.model["mean"])
            control.progress((step + 1) / 5, loss=abs(value - self.model["mean"][0]))
        return 5

    def measure(self, control):
        if not len(self.held_out):
            return EvaluationResult(examples=0)
        MEASURED.update(self.held_out)
        np.random.seed()  # what others in the process do with its dice
        error = float(abs(np.mean(self.held_out) - self.model["mean"][0]))
        return EvaluationResult(examples=len(self.held_out), metrics={"error": error})

    def holdings(self):
        return Holdings(examples=len(self.values), classes=lambda: self.classes)

    def take(self, training, held_out):
        self.values, self.held_out = self.values[list(training)], self.values[list(held_out)]
        self._examples = len(self.values)

    def join(self, others):
        self.values = np.concatenate([self.values, *(other.values for other in others)])


def read(data):
    return [float(line) for line in Path(data).read_text().split()]


def trainer(data):
    return Mean(read(data))


def builtin(count=30):
    return Mean(range(count), classes=[index % 3 for index in range(count)])


def fails(data, at=3):
    made = Mean(read(data))
    fit, made.done = made._fit, 0
    def failing(control):
        made.done += 1
        if made.done == at:
            raise ValueError("the scanner said no")
        return fit(control)
    made._fit = failing
    return made


def settles(at):
    made = builtin()
    fit, made.done = made._fit, 0
    def fitted(control):
        made.done += 1
        return fit(control) if made.done < at else 1
    made._fit = fitted
    return made


def interrupted():
    made = builtin()
    def interrupt(control):
        raise KeyboardInterrupt
    made._fit = interrupt
    return made


def wild(data):
    made = Mean(read(data))
    made._fit = lambda control: made.model["mean"].fill(np.inf) or 1
    return made


def blind():
    made = builtin()
    made._evaluate = None
    return made


class Plain:
    def __init__(self, inner):
        self.spec, self.initial, self.train, self.evaluate = inner.spec, inner.initial, inner.train, inner.evaluate


def plain(data=None):
    return Plain(builtin())


class Listed(Mean):
    '''Trains on what the dataset.json of its folder lists, or on all files there.'''

    def __init__(self, folder, by_list):
        import json
        listed = json.loads((Path(folder) / "dataset.json").read_text())
        names = [item["image"] for item in listed["training"]] if by_list else sorted(
            path.name for path in (Path(folder) / "images").iterdir())
        super().__init__([float(Path(name).stem) for name in names])
        self.held_out = [float(Path(item["image"]).stem) for item in listed["validation"]]


def listed(data, by_list=True):
    return Listed(data, by_list)


def exits(data=None):
    raise SystemExit(3)
"""
_numbers = itertools.count()
Try = Callable[..., TrialReport]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the present folder that nobody has imported before."""
    name = f"tried_code_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    (tmp_path / "all.txt").write_text("\n".join(map(str, range(40))))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield name
    sys.path[:] = before
    sys.modules.pop(name, None)


@pytest.fixture
def screen() -> Console:
    return open_screen(io.StringIO())


def text(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_data_are_divided_trained_on_measured_and_compared(module: str, screen: Console) -> None:
    options = TrialOptions(factory=f"{module}:trainer", data=("all.txt",), versions=4)
    report = tried(options, screen)
    assert [site.examples for site in report.sites] == [11, 11, 10]
    assert [point.version for point in report.versions] == [0, 1, 2, 3, 4]
    assert [(site.updates, site.steps) for site in report.sites] == [(4, 20)] * 3
    assert (report.key_metric, report.more_is_better, report.steps) == ("error", False, 60)
    assert report.federated.metrics["error"] < report.versions[0].metrics["error"]
    assert report.pooled is not None
    assert all(site.alone for site in report.sites)
    assert report.complete
    for said in ("site-3 alone", "federated", "all data pooled", "at the start", "8 examples that no site has"):
        assert said in text(screen)


@pytest.mark.parametrize(
    "data",
    [{"data": ("all.txt",)}, {"data": ("all.txt", "more.txt")}, {"data": ("folder",)}, {"alpha": 0.5}],
    ids=["divided", "each its own", "listed", "by class"],
)
def test_nothing_is_measured_on_that_was_trained_on_in_any_comparison(
    module: str, screen: Console, folder: Path, data: dict[str, object]
) -> None:
    (folder.parent / "more.txt").write_text("\n".join(map(str, range(100, 120))))
    factory = {"alpha": "builtin", "data": "listed" if data.get("data") == ("folder",) else "trainer"}[next(iter(data))]
    tried(TrialOptions(factory=f"{module}:{factory}", versions=1, **data), screen)
    trained, measured = sys.modules[module].TRAINED, sys.modules[module].MEASURED
    assert trained
    assert measured
    assert not trained & measured


def test_the_same_seed_gives_the_same_and_another_seed_another(module: str, screen: Console) -> None:
    options = TrialOptions(factory=f"{module}:trainer", data=("all.txt",), versions=2, seed=1)

    def figures(options: TrialOptions) -> Sequence[object]:
        made = tried(options, screen)
        return [*(point.metrics for point in made.versions), made.pooled, *(site.alone for site in made.sites)]

    first = figures(options)
    assert first == figures(options)
    assert first != figures(replace(options, seed=2))


def test_sites_may_bring_their_own_data(module: str, screen: Console, tmp_path: Path) -> None:
    for name, start in (("North Ward.v2.txt", 0), ("south.txt", 100)):
        (tmp_path / name).write_text("\n".join(map(str, range(start, start + 10))))
    options = TrialOptions(factory=f"{module}:trainer", data=("North Ward.v2.txt", "south.txt"), versions=1)
    report = tried(options, screen)
    assert [(site.name, site.examples) for site in report.sites] == [("north-ward", 8), ("south", 8)]
    assert report.pooled is not None
    folder = tmp_path / "sites"
    folder.mkdir()
    for name in ("north", "south"):
        (folder / f"{name}.txt").write_text("1\n2\n3")
    report = tried(TrialOptions(factory=f"{module}:trainer", data=("sites",), per_site=True, versions=1), screen)
    assert [site.name for site in report.sites] == ["north", "south"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "images").mkdir(parents=True)
    items = [{"image": f"images/{index}.txt"} for index in range(12)]
    for item in items:
        (tmp_path / "folder" / item["image"]).write_text("")
    (tmp_path / "folder" / "dataset.json").write_text(json.dumps({"training": items[:9], "validation": items[9:]}))
    return tmp_path / "folder"


def test_a_folder_with_a_list_is_divided_by_its_list(module: str, screen: Console, folder: Path) -> None:
    report = tried(TrialOptions(factory=f"{module}:listed", data=(str(folder),), versions=1), screen)
    assert [site.examples for site in report.sites] == [3, 3, 3]
    assert report.held_out == "3 images that no site trains on"
    assert report.pooled is not None


def test_training_that_does_not_follow_the_list_is_refused(module: str, screen: Console, folder: Path) -> None:
    options = TrialOptions(factory=f"{module}:listed", data=(str(folder),), options={"by_list": False}, versions=1)
    with pytest.raises(ConfigError, match=r"does not follow the lists of dataset\.json: it has 12 images where 9 are"):
        tried(options, screen)


def test_a_trainer_with_data_of_its_own_is_divided_by_class(module: str, screen: Console) -> None:
    options = TrialOptions(factory=f"{module}:builtin", alpha=0.3, sites=2, versions=1, compare=False)
    report = tried(options, screen)
    assert sum(sum(site.classes.values()) for site in report.sites) == 24
    assert report.pooled is None


def test_an_asynchronous_strategy_waits_for_nobody(module: str, screen: Console) -> None:
    options = TrialOptions(factory=f"{module}:builtin", strategy="fedbuff", versions=3, compare=False)
    assert tried(options, screen).federated.version == 3


def test_a_trial_ends_where_training_changes_nothing_any_more(module: str, screen: Console) -> None:
    report = tried(TrialOptions(factory=f"{module}:settles", options={"at": 3}, versions=50), screen)
    assert (report.federated.version, report.complete) == (2, True)
    assert report.notes == ("It ended early: training at site-1 changed nothing any more.",)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # what an interrupt leaves behind
@pytest.mark.parametrize(
    ("factory", "asked_for", "said"),
    [
        ("fails", {"data": ("all.txt",)}, r"training at site-1 failed: {m}\.py:\d+: ValueError: the scanner said no"),
        ("settles", {"options": {"at": 1}}, r"training at site-1 failed \(unchanged\): Mean took 1 steps"),
        ("interrupted", {}, r"training at site-1 failed: {m}\.py:\d+: KeyboardInterrupt"),
        ("wild", {"data": ("all.txt",)}, r"training at site-1 failed \(diverged\): .*finite"),
    ],
)
def test_a_training_that_fails_ends_the_trial_with_its_place(
    module: str, screen: Console, factory: str, asked_for: dict[str, object], said: str
) -> None:
    with pytest.raises(TrainingError, match=said.format(m=module)):
        tried(TrialOptions(factory=f"{module}:{factory}", versions=5, **asked_for), screen)


@pytest.mark.parametrize(
    ("factory", "asked_for", "said"),
    [
        ("trainer", {}, "needs data: give the data by --data PATH"),
        ("trainer", {"data": ("none.txt",)}, "no such file"),
        ("nobody", {}, "no attribute 'nobody'"),
        ("builtin", {"data": ("all.txt",), "options": {"count": 3}}, "takes no data"),
        ("builtin", {"options": {"count": 3}}, "there are 3 examples, too few for 3 sites"),
        ("builtin", {"options": {"many": 3}}, r"does not take the options \['many'\]"),
        ("trainer", {"data": ("all.txt",), "alpha": 1.0}, "targets of .* are no classes"),
        ("plain", {}, "makes a Plain, whose data cannot be divided"),
        ("exits", {}, r"makes no trainer: .*\.py:\d+: SystemExit"),
        ("read", {"data": ("all.txt",)}, r"makes a list \(.*\.py:\d+\); return a trainer"),
        ("CODE", {}, "no attribute 'CODE'"),
        ("blind", {}, "evaluates nothing"),
        ("builtin", {"strategy": "nothing"}, "no strategy called 'nothing'"),
        ("builtin", {"report": Path("r.pdf")}, "end the name in .md or .json"),
        ("builtin", {"report": Path("none/r.md")}, "no such folder"),
        ("builtin", {"out": Path(".")}, "is not empty"),
    ],
)
def test_what_cannot_be_tried_is_said_before_anything_is_trained(
    module: str, screen: Console, factory: str, asked_for: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        tried(TrialOptions(factory=f"{module}:{factory}", versions=1, **asked_for), screen)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def trainer(:", r"broken\.py:1: SyntaxError"),
        ("import no_such_package", r"broken\.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1\nx.y", r"broken\.py:2: AttributeError"),
        ("raise SystemExit(4)", "ends the program"),
    ],
)
def test_a_module_that_does_not_load_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(ConfigError, match=said):
        run_trial(TrialOptions(factory="broken:trainer"))
    sys.modules.pop("broken", None)


def test_ctrl_c_ends_it_with_what_there_is(module: str, screen: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    from fledge.trial import federation

    measured = federation.Federation._measure

    def third(self: federation.Federation, kept: object, version: int, *rest: object) -> None:
        measured(self, kept, version, *rest)
        if version == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(federation.Federation, "_measure", third)
    report = tried(TrialOptions(factory=f"{module}:builtin", versions=50), screen)
    assert (report.complete, report.federated.version, report.pooled) == (False, 3, None)
    assert "stopped after version 3" in text(screen)


def test_a_report_is_written_and_everything_kept(module: str, screen: Console, tmp_path: Path) -> None:
    options = TrialOptions(factory=f"{module}:builtin", versions=1, report=tmp_path / "r.md", out=tmp_path / "kept")
    tried(options, screen)
    assert "| all data pooled |" in (tmp_path / "r.md").read_text()
    kept = json.loads((tmp_path / "kept" / "report.json").read_text())
    assert [site["name"] for site in kept["sites"]] == ["site-1", "site-2", "site-3"]
    assert (tmp_path / "kept" / "try.log").stat().st_size > 0
    assert (tmp_path / "kept" / "federation" / "aggregator.toml").is_file()


def test_a_project_says_what_to_try_and_the_command_line_says_otherwise(tmp_path: Path) -> None:
    table = '[tool.fledge.try]\nfactory = "mine:trainer"\ndata = "d"\nsites = 4\nseed = 7\n'
    (tmp_path / "pyproject.toml").write_text(table)
    options = asked({"sites": 2}, tmp_path)
    assert (options.factory, options.data, options.sites, options.seed) == ("mine:trainer", ("d",), 2, 7)
    assert asked({"factory": "other:trainer"}, tmp_path).data == ()
    (tmp_path / "pyproject.toml").write_text("[tool.fledge.try]\nsite = 4\n")
    with pytest.raises(ConfigError, match=r"\[tool.fledge.try\] site: "):
        asked({}, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_trial_that_is_told_to_stop_shows_what_there_is(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
    signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)


def test_words_of_others_neither_steer_the_terminal_nor_tell_a_login(tmp_path: Path) -> None:
    error = RuntimeError("[/bold] [batch, 10] \x1b[2J at amqp://me:MARK-MARK@hub.example/v")
    note = told(error, "mytask.py:3")
    assert note == r"mytask.py:3: RuntimeError: [/bold] [batch, 10] \x1b[2J at amqp://***@hub.example/v"
    point = Scored(0, 0.0, {"[/bold]": 0.5})
    site = SiteReport(name="site-1", examples=3, classes={"[/red]": 3}, updates=1, steps=2, loss=None)
    report = TrialReport(
        trainer="[/bold]",
        command="fledge try",
        fledge="1",
        strategy="fedavg",
        seed=0,
        parameters=1,
        held_out="[/dim]",
        key_metric="[/bold]",
        more_is_better=True,
        versions=[point],
        sites=[site],
        steps=2,
        training_seconds=0.0,
        seconds=0.0,
        complete=True,
        notes=[note],
    )
    screen = io.StringIO()
    console = open_screen(screen)
    watch = TrialWatch(console, [("site-1", 3, 1)], 1)
    watch.measured(point)
    watch.doing("[/bold]", 0.0)
    show(report, console)
    shown = screen.getvalue()
    assert "[/bold] on [/dim]" in shown
    assert note in shown
    for umask, mode in ((0o077, 0o600), (0o022, 0o644)):
        before = os.umask(umask)
        write(report, tmp_path / "report.md")
        os.umask(before)
        assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [mode]
