"""Clara's commands for runs: from `set_run_number` and `upload_folder` to the files that come down at the end.

In Clara a run number is a folder at the server that things are deployed into. Here a run is made in one step, so
`upload_folder` sends it, `deploy FOLDER server` has it taken over, and `deploy FOLDER client` hands its code to sites.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.ctl import model_actions, render, run_actions
from fledge.shell.clara_usage import CLIENT, SERVER, Misused, exactly, target
from protocol.errors import ConfigError
from protocol.messages import GOING_ON
from protocol.topology import AGGREGATOR

if TYPE_CHECKING:
    from fledge.runs.upload import Packed
    from fledge.shell.context import ShellContext

from fledge.shell.context import Staged

NUMBERED = re.compile(r"run-([0-9]+)")
_SAFETENSORS = ".safetensors"


def set_run_number(shell: ShellContext, words: Sequence[str]) -> None:
    """Choose the run that the commands after it are for."""
    name = _numbered(words)
    answer = shell.hub("run.list")
    if answer is None:
        return
    shell.run = name
    number = name.partition("-")[2]
    if name in answer.column("run"):
        shell.say(f"run number already exist. Set the FL run number to {number}.")
    else:
        shell.say(f"Create a new run number: {number}. `deploy FOLDER server` makes it at the server.")


def delete_run_number(shell: ShellContext, words: Sequence[str]) -> None:
    """Delete a run at the server and at the clients."""
    name = _numbered(words)
    if _delete(shell, name):
        shell.say(f"The run number {name.partition('-')[2]} is deleted.")


def upload_folder(shell: ShellContext, words: Sequence[str]) -> None:
    """Check a run's folder and send it to the server, encrypted."""
    (name,) = exactly(words, 1, 1)
    if shell.run is None:
        packed = _packed(name, "")
        shell.say(
            f"{name} is complete ({packed.size / 1e6:.3g} MB, code {packed.digest or '-'}); it is sent by "
            "`deploy FOLDER server` once `set_run_number N` has named its run."
        )
        return
    packed = _upload(shell, name, shell.run).packed
    shell.say(f"Created folder {shell.run} at the server ({packed.size / 1e6:.3g} MB, code {packed.digest or '-'})")


def deploy(shell: ShellContext, words: Sequence[str]) -> None:
    """Make a run of an uploaded folder, or hand its code to clients."""
    name, *rest = exactly(words, 2)
    where, names = target(rest, SERVER, CLIENT)
    if shell.run is None:
        raise ConfigError("the FL run number has not been set; set_run_number N")
    if where == SERVER:
        _take_over(shell, name, shell.run)
    else:
        _hand_out(shell, shell.run, names)


def start(shell: ShellContext, words: Sequence[str]) -> None:
    """Start training: of the run, or at clients."""
    where, names = target(words, SERVER, CLIENT)
    if where == SERVER:
        if shell.hub("run.start", {"run": shell.run}) is not None:
            shell.say("Server training is starting...")
        return
    run = run_actions.the_run(shell.session, shell.run)
    shell.at_sites("run.join", names or shell.session.sites(), {"run": run}, done="Starting the client...")


def start_mgpu(shell: ShellContext, words: Sequence[str]) -> None:
    """Start training on several accelerators."""
    exactly(words, 2, 3)
    shell.fail(
        "Error: how many accelerators a client trains on is decided by its own trainer and its own configuration, not "
        "from here; `sys_info client SITE` lists them, and `start client SITE` starts it."
    )


def abort_task(shell: ShellContext, words: Sequence[str]) -> None:
    """Drop what a client trains now, and train the run there no more."""
    named = list(words[1:]) if words[:1] == [CLIENT] else list(words)
    (site,) = exactly(named, 1, 1)
    leave(shell, [site])


def leave(shell: ShellContext, sites: Sequence[str]) -> None:
    """Have sites leave the run; `start client` takes it back."""
    run = run_actions.the_run(shell.session, shell.run)
    shell.at_sites("run.leave", sites or shell.session.sites(), {"run": run})


# ---- what comes down


def download_binary(shell: ShellContext, words: Sequence[str]) -> None:
    """Write the run's newest model into the folder of this machine."""
    for name in exactly(words, 1):
        _download_model(shell, _local(name if Path(name).suffix else f"{name}{_SAFETENSORS}"), shell.run)


def download_text(shell: ShellContext, words: Sequence[str]) -> None:
    """Write the run's settings into a text file."""
    for name in exactly(words, 1):
        _download_settings(shell, _local(name), shell.run)


def download_folder(shell: ShellContext, words: Sequence[str]) -> None:
    """Write the run's newest model and its settings into a new folder."""
    (name,) = exactly(words, 1, 1)
    _download_both(shell, _local(name), shell.run)


# ---- jobs: a run is called by its name, not by a number


def submit_job(shell: ShellContext, words: Sequence[str]) -> None:
    """Make a run of a folder, hand it to every client and start it."""
    (name,) = exactly(words, 1, 1)
    packed = _packed(name, "")
    if not _take_over(shell, name, packed.name) or not _hand_out(shell, packed.name, ()):
        return
    if shell.hub("run.start", {"run": packed.name}) is not None:
        shell.say(f"Submitted job: {packed.name}")


def clone_job(shell: ShellContext, words: Sequence[str]) -> None:
    """Make a run from another one's settings, code and version 0."""
    run, *new = exactly(words, 1, 2)
    listed = shell.hub("run.list")
    if listed is None:
        return
    held = set(map(str, listed.column("run")))
    name = new[0] if new else next(each for at in range(2, len(held) + 3) if (each := f"{run}-{at}") not in held)
    (answer,) = run_actions.clone(shell.session, run, name)
    if answer.ok:
        shell.say(f"Cloned job {run} as: {name}; start it by: run start {name}")
    else:
        shell.refused([answer])


def download_job(shell: ShellContext, words: Sequence[str]) -> None:
    """Write a run's newest model and its settings into a folder of its name."""
    (run,) = exactly(words, 1, 1)
    _download_both(shell, _local(run), run)


def delete_job(shell: ShellContext, words: Sequence[str]) -> None:
    """Delete a run at the server and at the clients."""
    (run,) = exactly(words, 1, 1)
    if _delete(shell, run):
        shell.say(f"Deleted job: {run}")


# ---- what they share


def _numbered(words: Sequence[str]) -> str:
    (number,) = exactly(words, 1, 1)
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        raise Misused(f"{number!r} is not a number above 0")
    return f"run-{int(number)}"


def _packed(folder: str, run: str) -> Packed:
    from fledge.runs.upload import pack

    return pack(Path(folder), run)


def _upload(shell: ShellContext, folder: str, run: str) -> Staged:
    packed = _packed(folder, run)
    shell.staged[folder.rstrip("/"), run] = staged = Staged(packed, run_actions.upload(shell.session, packed))
    return staged


def _take_over(shell: ShellContext, folder: str, run: str) -> bool:
    """Have the server make the run; what was not uploaded is uploaded now."""
    staged = shell.staged.get((folder.rstrip("/"), run)) or _upload(shell, folder, run)
    (answer,) = run_actions.take_over(shell.session, staged.packed, staged.record)
    if not answer.ok:
        shell.refused([answer])
        return False
    shell.runs.add(run)
    shell.say(f"server : MMAR deployed. {run}: version {answer.values.get('version', 0)}")
    return True


def _hand_out(shell: ShellContext, run: str, names: Sequence[str]) -> bool:
    """Have clients (none named: all) take over the run's code; whether any of them did."""
    answers = run_actions.deploy(shell.session, run, names)
    if answers[0].sender == AGGREGATOR:  # which did not offer it, or did not hand the command on
        shell.refused(answers)
        return False
    shell.instances(answers, done="MMAR deployed.")
    return any(answer.ok for answer in answers)


def _delete(shell: ShellContext, run: str) -> bool:
    listed = shell.hub("run.list")
    if listed is None:
        return False
    states = {str(row["run"]): row.get("state") for row in render.parts(listed.values).rows()}
    if states.get(run) in GOING_ON:
        shell.fail(f"Error: {run} is {states[run]}; `run abort {run}` ends it, then it can be deleted.")
        return False
    *sites, hub = run_actions.delete(shell.session, run, sites=run in states)
    shell.instances(sites, done="deleted")
    if not hub.ok:
        shell.refused([hub])
    return hub.ok


def _local(name: str) -> Path:
    """A new file or folder directly below the folder of this machine.

    Raises:
        ConfigError: the name leads elsewhere, or is in use.
    """
    if Path(name).name != name or name in (".", ".."):
        raise ConfigError(f"{name!r}: name a file without folders; it is written to {Path.cwd()}")
    if (path := Path(name)).exists():
        raise ConfigError(f"{path} exists already; choose another name or remove it")
    return path


def _download_both(shell: ShellContext, folder: Path, run: str | None) -> None:
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}") from error
    _download_model(shell, folder / f"model{_SAFETENSORS}", run)
    _download_settings(shell, folder / "run.txt", run)


def _download_model(shell: ShellContext, path: Path, run: str | None) -> None:
    (answer,) = model_actions.export(shell.session, path, run, None, raw=False)
    if answer.ok:
        values = answer.values
        shell.say(f"{path}: version {values['version']} of {values['run']}, {values['bytes']} bytes")
    else:
        shell.refused([answer])


def _download_settings(shell: ShellContext, path: Path, run: str | None) -> None:
    if (answer := shell.hub("run.show", {"run": run})) is None:
        return
    shown = render.parts(answer.values).scalars
    try:
        path.write_text("".join(f"{key} = {render.shown(key, value)}\n" for key, value in shown.items()), "utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    shell.say(f"{path}: {len(shown)} settings")
