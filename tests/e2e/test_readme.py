"""What README and documentation show is what happens."""

from __future__ import annotations

import re
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import structlog
from pydantic import BaseModel
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from aggregator.config import AggregatorConfig, RunConfig, StopConfig
from fledge import new_federation, open_aggregator, open_worker
from fledge.cli.app import app
from fledge.operator.config import OperatorConfig
from fledge.runs.init_run import RUN_TOML
from fledge.runs.upload import pack
from worker.config import WorkerConfig
from worker.policy import SitePolicy

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL, SETTINGS = (
    (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("tutorial.md", "configuration.md")
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SITES = ("north", "south")


@pytest.fixture(params=[README, TUTORIAL], ids=["README", "tutorial"])
def mytask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The page's training code in a directory of its own, and some data for each site."""
    code = next(text for language, text in FENCE.findall(request.param) if language == "python")
    (tmp_path / "mytask.py").write_text(code)
    (data,) = (text for language, text in FENCE.findall(TUTORIAL) if "np.savez" in text)
    monkeypatch.chdir(tmp_path)
    exec(compile(data, "tutorial.md", "exec"), {})
    yield tmp_path
    sys.modules.pop("mytask", None)
    sys.path[:] = [path for path in sys.path if not path.startswith(str(tmp_path))]


def fledge(*arguments: str) -> str:
    """What a command says that is run in this process."""
    done = CliRunner().invoke(app, arguments)
    structlog.reset_defaults()  # it logs to a stream that is gone now
    assert done.exit_code == 0, done.output
    return str(done.output)


def test_the_users_example_trains_in_a_federation(mytask: Path) -> None:
    new_federation(
        mytask / "clinics",
        name="clinics",
        sites=SITES,
        broker=f"memory:{mytask.name}",
        store=(mytask / "store").as_uri(),
        trainer="mytask:trainer",
        options={site: {"data": str(mytask / f"{site}.npz")} for site in SITES},
    )
    fledge("init-run", "mytask:model", "-o", "run")
    with (mytask / "run" / RUN_TOML).open("a") as file:
        file.write("max_versions = 10\n")
    ended = threading.Event()

    def watch(event: str, fields: object) -> None:
        if event == "run":
            ended.set()

    config = mytask / "clinics" / "aggregator.toml"
    with ExitStack() as stack:
        aggregator = stack.enter_context(open_aggregator(config, mytask / "run", observer=watch))
        aggregator.start()
        for site in SITES:
            stack.enter_context(open_worker(mytask / "clinics" / "sites" / site / "worker.toml")).start()
        assert ended.wait(60)
    out = mytask / "model.safetensors"
    told = fledge("export", str(out), "--config", str(config), "--run", "run", "--raw")
    measures = "evaluate_on" in (mytask / "mytask.py").read_text()
    assert ("the best by accuracy: " if measures else "the newest, because no site has measured one") in told
    weights = load_file(out)
    pixels, digits = load_digits(return_X_y=True)
    hidden = np.maximum(pixels / 16 @ weights["0.weight"].T + weights["0.bias"], 0)
    guesses = (hidden @ weights["2.weight"].T + weights["2.bias"]).argmax(1)
    assert (guesses == digits).mean() > 0.5


def test_the_users_example_is_tried_by_the_command_shown(mytask: Path) -> None:
    (shown,) = (line for line in README.splitlines() if line.startswith("fledge try"))
    command = shlex.split(shown, comments=True)[1:]
    done = CliRunner().invoke(app, [*command, "--versions", "4", "--no-compare"])
    structlog.reset_defaults()
    assert done.exit_code == 0, done.output
    accuracy = re.search(r"^federated +([\d.]+)%", done.output, re.MULTILINE)
    assert accuracy is not None, done.output
    assert float(accuracy[1]) > 50


def test_the_users_example_travels_as_a_runs_code(mytask: Path) -> None:
    (mytask / "mycode").mkdir()
    (mytask / "mytask.py").rename(mytask / "mycode" / "trainer.py")
    fledge("init-run", "trainer:model", "--code", "mycode", "-o", "chest")
    packed = pack(mytask / "chest")
    assert (packed.name, len(packed.digest)) == ("chest", 64)
    sys.modules.pop("trainer", None)


DEPTH = {"deploy": 2, "site": 2, "bundle": 2, "data": 2, "ctl": 3}
"""How many words name a command, where it is more than one."""


PAGES = {
    "README.md": 17,
    "docs/tutorial.md": 7,
    "docs/trying.md": 4,
    "docs/federation.md": 13,
    "docs/training.md": 3,
    "docs/zoo.md": 3,
    "docs/data.md": 3,
    "docs/mmar.md": 2,
    "docs/inference.md": 2,
}
"""Pages whose commands are tried, and how many each shows at least."""


def test_the_readme_is_one_page_and_its_example_short() -> None:
    assert len(README.splitlines()) <= 120
    (code,) = (text for language, text in FENCE.findall(README) if language == "python")
    assert len(code.split("\n\n")) == 3, "imports, a model, a trainer"
    assert len([line for line in code.splitlines() if line]) <= 10


@pytest.mark.parametrize("page", PAGES)
def test_every_command_shown_exists_with_its_options(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = [text.replace("\\\n", " ") for language, text in FENCE.findall(text) if language == "sh"]
    lines = [line for text in shown for line in text.splitlines() if line.startswith("fledge ")]
    assert len(lines) >= PAGES[page]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[1] == "ctl":
            words = [words[0], *shlex.split(" ".join(words[1:]).replace(" --kit lead", ""))]
        command = words[1 : 1 + DEPTH.get(words[1], 1)]
        helped = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert helped.exit_code == 0, line
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"{option}\b", helped.output), f"{option} in: {line}"


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("aggregator.toml", AggregatorConfig),
        ("run.toml", RunConfig),
        ("worker.toml", WorkerConfig),
        ("policy.toml", SitePolicy),
        ("operator.toml", OperatorConfig),
    ],
)
def test_the_tables_name_every_key_and_no_other(title: str, model: type[BaseModel]) -> None:
    table = SETTINGS.split(f"\n`{title}`, ", 1)[1].split("\n\n")[1]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(model.model_fields)


def test_the_stop_rules_are_named() -> None:
    (row,) = (line for line in SETTINGS.splitlines() if line.startswith("| `stop` |"))
    assert set(re.findall(r"`(\w+)`", row)) == {"stop", *StopConfig.model_fields}
