"""Runs from an operator's laptop and models back to it, against a hub from memory that really opens what is sent."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fledge.cli.app import ctl as app
from fledge.cli.app import exit_code
from fledge.runs.init_run import init_run
from fledge.runs.upload import pack
from protocol.errors import FledgeError
from tests.support.operator_hub import refused, silent
from tests.support.run_hub import OFFERED, RunHub

TRAINER = "def trainer(**options):\n    return options\n"


@pytest.fixture
def hub(tmp_path: Path) -> RunHub:
    return RunHub(tmp_path / "kit")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    code = tmp_path / "mycode"
    code.mkdir()
    (code / "trainer.py").write_text(TRAINER)
    init_run("fledge.demo.task:trainer", tmp_path / "chest", name="chest", options={"seed": 3, "hospitals": 2})
    code.rename(tmp_path / "chest" / "code")
    return tmp_path / "chest"


def ctl(hub: RunHub, *words: object, typed: str | None = None, code: int = 0) -> Result:
    """A command as the program itself would end."""
    done = CliRunner().invoke(app, ["--kit", str(hub.kit), *map(str, words)], obj=hub.open, input=typed)
    error = done.exception
    ended = exit_code(error) if isinstance(error, FledgeError) else done.exit_code
    assert ended == code, (done.output, error)
    return done


def told(hub: RunHub, *words: object) -> dict[str, Any]:
    """The values of the one answer."""
    (answer,) = json.loads(ctl(hub, *words, "--json").stdout)["answers"]
    return dict(answer["values"])


def orders(hub: RunHub) -> list[str]:
    return [asked.command for asked in hub.asked]


def codes(hub: RunHub) -> dict[str, str]:
    return dict(json.loads((hub.kit / "runs.json").read_text())["codes"])


def test_from_a_folder_to_a_trained_model(hub: RunHub, folder: Path, tmp_path: Path) -> None:
    packed, out = pack(folder), tmp_path / "model.safetensors"
    assert told(hub, "run", "create", folder)["code"] == packed.digest
    ctl(hub, "run", "deploy", "chest")
    ctl(hub, "run", "start", "chest")
    facts = told(hub, "model", "export", "chest", "-o", out)
    assert orders(hub) == [
        "run.list",
        "run.create",
        "run.offer",
        "site.list",
        "run.deploy",
        "run.start",
        "model.export",
    ]
    assert hub.runs["chest"].code == packed.code
    deployed = hub.asked[4]
    assert deployed.targets == ("north", "south")
    assert dict(deployed.arguments) == {"run": "chest", "code": packed.digest, "record": OFFERED}
    assert out.read_bytes() == (folder / "initial.safetensors").read_bytes()
    assert facts["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


def test_what_this_kit_created_is_remembered_privately(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    ctl(hub, "run", "create", folder, "--name", "other")
    ctl(hub, "run", "clone", "chest", "third")
    digest = pack(folder).digest
    assert codes(hub) == {"chest": digest, "other": digest, "third": digest}
    assert stat.S_IMODE((hub.kit / "runs.json").stat().st_mode) == 0o600
    ctl(hub, "run", "delete", "other", "--yes")
    assert codes(hub) == {"chest": digest, "third": digest}


def test_a_name_in_use_is_refused_before_anything_is_sent(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    before = list(hub.blobs.list(""))
    done = ctl(hub, "run", "create", folder, code=2)
    assert "nothing was sent" in str(done.exception)
    assert list(hub.blobs.list("")) == before


def test_the_answer_is_waited_for_as_long_as_a_model_takes(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    assert [asked.timeout for asked in hub.asked] == [10.0, 600.0]


def test_an_aggregator_that_takes_over_other_code_is_found_out(hub: RunHub, folder: Path) -> None:
    hub.answers["run.create"] = {"run": "chest", "code": "f" * 64, "version": 0}
    done = ctl(hub, "run", "create", folder, code=1)
    assert "do not deploy it" in str(done.exception)
    assert not (hub.kit / "runs.json").exists()


def test_a_refusal_is_no_memory(hub: RunHub, folder: Path) -> None:
    hub.answers["run.create"] = refused()
    ctl(hub, "run", "create", folder, code=1)
    assert not (hub.kit / "runs.json").exists()


def test_code_that_was_changed_at_the_aggregator_goes_to_no_site(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    hub.spoil = "code"
    done = ctl(hub, "run", "deploy", "chest", "--yes", code=2)
    assert "no site was told" in str(done.exception)
    assert "run.deploy" not in orders(hub)


def test_an_aggregator_that_names_another_run_or_no_digest_gets_nothing_signed(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    for hub.spoil in ("run", "word"):
        done = ctl(hub, "run", "deploy", "chest", "--yes", code=2)
        assert "no site was told" in str(done.exception)
    assert "run.deploy" not in orders(hub)


@pytest.mark.parametrize("given", ["digest", "typed", "--yes"])
def test_code_of_somebody_else_is_deployed_once_it_is_confirmed(hub: RunHub, folder: Path, given: str) -> None:
    ctl(hub, "run", "create", folder)
    (hub.kit / "runs.json").unlink()
    digest = pack(folder).digest
    options = {"digest": ["--code", digest.upper()], "typed": [], "--yes": ["--yes"]}[given]
    done = ctl(hub, "run", "deploy", "chest", "north", *options, typed="chest\n" if given == "typed" else None)
    assert (digest in done.stderr) == (given == "typed")
    assert hub.last.targets == ("north",)


def test_code_that_nobody_confirms_goes_to_no_site(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    (hub.kit / "runs.json").unlink()
    for typed in ("", "yes\n"):
        done = ctl(hub, "run", "deploy", "chest", typed=typed, code=2)
        assert "run.deploy was not sent" in str(done.exception)
    wrong = ctl(hub, "run", "deploy", "chest", "--code", "a" * 64, code=2)
    assert "no site was told" in str(wrong.exception)
    assert "not a SHA-256" in str(ctl(hub, "run", "deploy", "chest", "--code", "abc", code=2).exception)
    assert "run.deploy" not in orders(hub)


def test_a_run_without_code_is_deployed_as_such(hub: RunHub, folder: Path) -> None:
    (folder / "code" / "trainer.py").unlink()
    (folder / "code").rmdir()
    assert told(hub, "run", "create", folder)["code"] == ""
    ctl(hub, "run", "deploy", "chest", "south")
    assert dict(hub.last.arguments) == {"run": "chest", "code": "", "record": ""}


def test_deleting_everywhere_begins_at_the_sites(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    ctl(hub, "run", "delete", "chest", "--sites", typed="chest\n")
    assert orders(hub)[-3:] == ["site.list", "run.withdraw", "run.delete"]
    assert "run.delete was not sent" in str(ctl(hub, "run", "delete", "chest", typed="no\n", code=2).exception)


def test_a_site_that_is_away_does_not_keep_a_run_alive(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    hub.answers["run.withdraw@south"] = silent("south")
    ctl(hub, "run", "delete", "chest", "--sites", "--yes", code=4)
    assert hub.runs == {}


def test_a_damaged_memory_is_named(hub: RunHub, folder: Path) -> None:
    ctl(hub, "run", "create", folder)
    (hub.kit / "runs.json").write_text("{")
    assert "runs.json is damaged" in str(ctl(hub, "run", "deploy", "chest", code=2).exception)
    (hub.kit / "runs.json").chmod(0o644)
    assert "chmod 600" in str(ctl(hub, "run", "deploy", "chest", code=2).exception)


# ---- models


@pytest.fixture
def trained(hub: RunHub, folder: Path) -> RunHub:
    ctl(hub, "run", "create", folder)
    return hub


@pytest.mark.parametrize("name", ["lung", "production"])
def test_a_published_model_comes_down_with_its_card(trained: RunHub, tmp_path: Path, name: str) -> None:
    out = tmp_path / "lung.safetensors"
    done = ctl(trained, "model", "pull", name, "-o", out)
    assert out.read_bytes() == trained.runs["chest"].model
    assert "getting chest version 3" in done.stderr
    card = json.loads((tmp_path / "lung.safetensors.json").read_text())
    assert (card["name"], card["version"], card["labels"]) == ("lung", 3, ["ct", "lung"])
    assert card["measurements"] == [{"site": "north", "examples": 9, "metrics": {"dice": 0.5}}]
    assert card["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    for path in (out, tmp_path / "lung.safetensors.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_card_is_shown_as_values_and_a_table(trained: RunHub) -> None:
    values = told(trained, "model", "card", "lung")
    assert (values["application"], values["labels"], values["sites"]) == ("lungs", "ct, lung", "north, south")
    assert [values[name] for name in ("site", "metric", "value")] == [["north"], ["dice"], [0.5]]


def test_a_model_that_is_not_there_is_refused(trained: RunHub, tmp_path: Path) -> None:
    done = ctl(trained, "model", "pull", "heart", "-o", tmp_path / "x", code=1)
    assert "no model was published" in done.stdout
    assert list(tmp_path.glob("x*")) == []


def test_a_file_is_never_overwritten(trained: RunHub, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    (tmp_path / "b.json").write_text("mine")
    asked = len(trained.asked)
    ctl(trained, "model", "pull", "lung", "-o", tmp_path / "a", code=2)
    ctl(trained, "model", "pull", "lung", "-o", tmp_path / "no" / "where", code=2)
    assert len(trained.asked) == asked
    ctl(trained, "model", "pull", "lung", "-o", tmp_path / "b", code=1)
    assert sorted(path.name for path in tmp_path.glob("[ab]*")) == ["a", "b.json"]


def test_only_the_aggregator_signs_cards(trained: RunHub, tmp_path: Path) -> None:
    trained.signer = "bob"
    done = ctl(trained, "model", "pull", "lung", "-o", tmp_path / "x", code=1)
    assert "may not sign CARD" in str(done.exception)


def test_another_model_than_the_one_asked_for_is_refused(trained: RunHub, tmp_path: Path) -> None:
    trained.card = replace(trained.card, name="heart")
    assert "is that of heart" in str(ctl(trained, "model", "card", "lung", code=1).exception)
    raw = ctl(trained, "model", "export", "chest", "0", "--raw", "-o", tmp_path / "x", code=1)
    assert "released average" in str(raw.exception)
    trained.answers["model.export"] = lambda arguments, sender: {"record": trained.seal("chest", 9)}
    other = ctl(trained, "model", "export", "chest", "1", "-o", tmp_path / "x", code=1)
    assert "not asked for" in str(other.exception)


def test_a_model_that_was_changed_in_the_store_leaves_no_file(trained: RunHub, tmp_path: Path) -> None:
    def spoiled(arguments: Any, sender: str) -> Any:
        record = trained.seal("chest", 3)
        for info in list(trained.blobs.list("models/")):
            trained.blobs.put(info.key, b"x" * info.size)
        return {"name": "lung", "record": record}

    trained.answers["model.card"] = spoiled
    ctl(trained, "model", "pull", "lung", "-o", tmp_path / "x", code=1)
    assert list(tmp_path.glob("x*")) == []


def test_a_kit_without_a_store_says_what_to_do(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fledge.operator.config import OperatorConfig
    from fledge.operator.store import open_store

    monkeypatch.delenv("FLEDGE_STORE", raising=False)
    hub: Any = RunHub(tmp_path / "kit")
    config = OperatorConfig(federation="clinics", broker="memory:", root="0" * 64)
    with pytest.raises(FledgeError, match=r"--reissue alice.*FLEDGE_STORE"), open_store(config, tmp_path, hub):
        pass
    given = {"FLEDGE_STORE": f"file://{tmp_path / 'store'}"}
    with open_store(config, tmp_path, hub, given) as store:
        assert list(store.list("")) == []
