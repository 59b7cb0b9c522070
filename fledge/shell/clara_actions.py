"""What each of Clara's commands does here, with ours; the shapes of the answers are Clara's where that helps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.ctl import render
from fledge.shell import clara_runs
from fledge.shell.clara_usage import ALL, CLIENT, SERVER, Misused, exactly, one_of, options, target
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from fledge.operator.console import Arguments
    from fledge.shell.context import ShellContext
    from protocol.codec import Plain, Value

_WHERE_IT_RUNS = "where it runs (`systemctl` or `docker compose`)"
_ENDED = ("run_stopped", "run_aborted")
_DONE = {"run.abort": "The run is ended at once.", "run.stop": "The run is ended in order."}


def bye(shell: ShellContext, words: Sequence[str]) -> None:
    """Leave; what was sent goes on."""
    exactly(words)
    shell.left = True


def lpwd(shell: ShellContext, words: Sequence[str]) -> None:
    """The folder on this machine that files are written to."""
    exactly(words)
    shell.say(str(Path.cwd()))


def info(shell: ShellContext, words: Sequence[str]) -> None:
    """Where files of this machine come from and go to."""
    exactly(words)
    shell.say(
        f"Local upload source: {Path.cwd()}",
        f"Local download destination: {Path.cwd()} (COMMAND >FILE)",
        f"Kit: {shell.session.kit}",
        f"Run: {shell.run or 'the one that goes on'}",
        f"Timeout: {shell.session.timeout:g} s",
    )


def set_timeout(shell: ShellContext, words: Sequence[str]) -> None:
    """How many seconds to wait for answers."""
    (text,) = exactly(words, 1, 1)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigError(f"set_timeout: {text!r} is not a number of seconds from 1 to 3600")
    shell.session.timeout = seconds
    shell.say(f"Answers are waited for {seconds:g} s from now on.")


def taskname(shell: ShellContext, words: Sequence[str]) -> None:
    """The federation's name."""
    exactly(words)
    shell.say(shell.members.federation)


# ---- training


def check_status(shell: ShellContext, words: Sequence[str]) -> None:
    """What the server or the clients do now."""
    where, names = target(words, SERVER, CLIENT)
    # A number that was set before its run was made is nothing that the server knows.
    answer = shell.hub("status", {"run": shell.run if shell.run in shell.runs else None})
    if answer is None:
        return
    found = render.parts(answer.values)
    rows = _of(found.rows(), names)
    if where == SERVER:
        run, state = (str(found.scalars.get(name) or "-") for name in ("run", "state"))
        number = clara_runs.NUMBERED.fullmatch(run)
        shell.say(
            f"FL run number: {number[1]}" if number else f"FL run: {'has not been set' if run == '-' else run}",
            f"FL server status: training {'not started' if state in ('-', 'created') else state}",
            f"Current version: {render.shown('version', found.scalars.get('version'))}",
            f"Registered clients: {len(rows)}",
        )
    shell.table(
        {
            "client name": _column(rows, "site"),
            "run": _column(rows, "run_of"),
            "status": [row.get("doing") if _heard(row) else "No Reply" for row in rows],
            "last seen": [render.ago(row.get("seen", -1)) for row in rows],
            "last version": _column(rows, "base"),
            "progress": [render.shown("progress", row.get("progress")) for row in rows],
            "waiting updates": _column(rows, "waiting"),
            "held": _column(rows, "held"),
        }
    )


def abort(shell: ShellContext, words: Sequence[str]) -> None:
    """End training: of the whole run, or at clients; what they train is dropped."""
    where, names = target(words, SERVER, CLIENT)
    if where == SERVER:
        _end(shell, "run.abort", shell.run)
    else:
        clara_runs.leave(shell, names)


def validate(shell: ShellContext, words: Sequence[str]) -> None:
    """What sites measured of the global model, as JSON."""
    site, *rest = exactly(words, 1, 2)
    version = rest[0] if rest else SERVER
    if version != SERVER and not version.isdigit():
        raise Misused("sites measure versions of the global model, not each other's")
    answer = shell.hub("metrics", {"run": shell.run})
    if answer is None:
        return
    results: dict[str, dict[str, dict[str, Plain]]] = {}
    for row in render.parts(answer.values).rows():
        if site in (ALL, row["site"]) and version in (SERVER, str(row["version"])):
            of_version = results.setdefault(str(row["site"]), {}).setdefault(str(row["version"]), {})
            of_version[str(row["metric"])] = row["value"]
    shell.say(*json.dumps(results, indent=2).splitlines())


# ---- sys


def restart(shell: ShellContext, words: Sequence[str]) -> None:
    """End the workers of clients in order; their supervisors start them again."""
    where, names = target(words, SERVER, CLIENT, ALL)
    if where != SERVER:
        shell.at_sites("site.restart", names or shell.session.sites())
    if where != CLIENT:
        shell.fail(f"Error: the aggregator is not restarted from afar; restart it {_WHERE_IT_RUNS}.")


def shutdown(shell: ShellContext, words: Sequence[str]) -> None:
    """End the workers of clients and leave them down, or end the run."""
    where, names = target(words, SERVER, CLIENT, ALL)
    if where != SERVER:
        shell.at_sites("site.shutdown", names or shell.session.sites())
    if where != CLIENT and _end(shell, "run.stop", shell.run):
        shell.say(f"The aggregator goes on answering; end it {_WHERE_IT_RUNS}.")


def remove_client(shell: ShellContext, words: Sequence[str]) -> None:
    """Take clients' updates no longer; `site readmit` takes it back."""
    for name in exactly(words, 1):
        if (answer := shell.hub("site.quarantine", {"site": name})) is not None:
            shell.say(f"instance:{name} : {answer.text or 'its updates are taken no longer'}")


def sys_info(shell: ShellContext, words: Sequence[str]) -> None:
    """Memory, processors, disk and accelerators of clients' machines."""
    where, names = target(words, SERVER, CLIENT)
    if where == SERVER:
        _not_the_hub(shell)
    else:
        shell.at_sites("sys.info", names or shell.session.sites(), titles={"metric": "metrics"})


# ---- shell: one site at a time


def pwd(shell: ShellContext, words: Sequence[str]) -> None:
    """The folder that the file commands start from."""
    _look(shell, "file.pwd", words)


def env(shell: ShellContext, words: Sequence[str]) -> None:
    """Settings of a client's worker in its environment."""
    _look(shell, "file.env", words)


def ls(shell: ShellContext, words: Sequence[str]) -> None:
    """A listing of the worker's own folder."""
    letters, _, rest = options(words, "altSRu")
    site, *path = _one_site(rest, 0, 1)
    _look(shell, "file.ls", [site], {"path": path[0] if path else ".", "options": letters})


def cat(shell: ShellContext, words: Sequence[str]) -> None:
    """A text file of the worker's own folder."""
    letters, _, rest = options(words, "nbsT")
    site, path = _one_site(rest, 1, 1)
    _look(shell, "file.cat", [site], {"path": path, "options": letters})


def head(shell: ShellContext, words: Sequence[str]) -> None:
    """The first lines of a text file."""
    _some_lines(shell, "file.head", words)


def tail(shell: ShellContext, words: Sequence[str]) -> None:
    """The last lines of a text file."""
    _some_lines(shell, "file.tail", words)


def grep(shell: ShellContext, words: Sequence[str]) -> None:
    """Lines of a text file that match."""
    letters, _, rest = options(words, "nib")
    site, pattern, path = _one_site(rest, 2, 2)
    _look(shell, "file.grep", [site], {"pattern": pattern, "path": path, "options": letters})


# ---- info


def show_stats(shell: ShellContext, words: Sequence[str]) -> None:
    """Figures of the run or of clients."""
    where, names = target(words, SERVER, CLIENT)
    if where == CLIENT:
        if (answer := shell.hub("status")) is not None:
            rows = _of(render.parts(answer.values).rows(), names)
            shell.table({name: _column(rows, name) for name in rows[0]} if rows else {"site": []})
        return
    if (answer := shell.hub("run.show", {"run": shell.run})) is not None:
        scalars = render.parts(answer.values).scalars
        shown = [render.shown(name, value) for name, value in scalars.items()]
        shell.table({"component": list(scalars), "value": shown})
    if (answer := shell.hub("metrics", {"run": shell.run})) is not None:
        shell.table(render.parts(answer.values).columns)


def show_errors(shell: ShellContext, words: Sequence[str]) -> None:
    """Messages that the server refused, or errors in clients' logs."""
    where, names = target(words, SERVER, CLIENT)
    if where == CLIENT:
        shell.at_sites("logs", names or shell.session.sites(), {"lines": 50, "grep": "error"})
    elif (answer := shell.hub("dead.list")) is not None:
        shell.table(render.parts(answer.values).columns)


def reset_errors(shell: ShellContext, words: Sequence[str]) -> None:
    """Forget the messages that the server refused."""
    where, _ = target(words, SERVER, CLIENT)
    if where == CLIENT:
        shell.fail("Error: a site's log is the site's own and rotates there; `reset_errors server` is what there is.")
    elif (answer := shell.hub("dead.purge")) is not None:
        shell.say(answer.text or "Every refused message is forgotten.")


# ---- jobs


def list_jobs(shell: ShellContext, words: Sequence[str]) -> None:
    """Runs with their state and version."""
    pending = [word for word in words if word != "-d"]  # details: there are no others than the table's
    prefix = ""
    if pending[:1] == ["-n"]:
        _, prefix, *pending = exactly(pending, 2)
    names = exactly(pending, 0, 1)
    if (answer := shell.hub("run.list")) is not None:
        rows = [
            row
            for row in render.parts(answer.values).rows()
            if str(row["run"]).startswith(prefix) and (not names or row["run"] == names[0])
        ]
        shell.table({"job": _column(rows, "run"), **{n: _column(rows, n) for n in ("state", "reason", "version")}})


def abort_job(shell: ShellContext, words: Sequence[str]) -> None:
    """End a run at once."""
    (run,) = exactly(words, 1, 1)
    _end(shell, "run.abort", run)


# ---- what they share


def _end(shell: ShellContext, command: str, run: str | None) -> bool:
    """Have the run ended; one that has ended already is no failure."""
    shell.session.confirm(command, {"run": run})
    (answer,) = shell.session.ask(command, {"run": run})[:1]
    if answer.ok or answer.reason in _ENDED:
        shell.say(answer.text or (_DONE[command] if answer.ok else "The run has ended already."))
        return True
    shell.refused([answer])
    return False


def _look(shell: ShellContext, command: str, words: Sequence[str], arguments: Arguments | None = None) -> None:
    (site,) = _one_site(words, 0, 0)
    if site == SERVER:
        _not_the_hub(shell)
    else:
        shell.at_sites(command, [site], arguments)


def _some_lines(shell: ShellContext, command: str, words: Sequence[str]) -> None:
    _, numbers, rest = options(words, "", "nc")
    site, path = _one_site(rest, 1, 1)
    arguments: dict[str, Value] = {"path": path, "lines": numbers.get("n", 10), "bytes": numbers.get("c")}
    _look(shell, command, [site], arguments)


def _one_site(words: Sequence[str], at_least: int, at_most: int) -> list[str]:
    """A site (`SITE` or `client SITE`, or `server`) and the words after it."""
    named = list(words[1:]) if words[:1] == [CLIENT] and len(words) > 1 else list(words)
    return exactly(named, at_least + 1, at_most + 1)


def _not_the_hub(shell: ShellContext) -> None:
    shell.fail("Error: the aggregator's machine is not looked at from afar; `status` and `run show` tell how it is.")


def _of(rows: list[dict[str, Plain]], names: Sequence[str]) -> list[dict[str, Plain]]:
    for name in names:
        one_of(name, "client", [str(row["site"]) for row in rows])
    return [row for row in rows if not names or row["site"] in names]


def _column(rows: Sequence[Mapping[str, Plain]], name: str) -> list[Plain]:
    return [row.get(name) for row in rows]


def _heard(row: Mapping[str, Plain]) -> bool:
    seen = row.get("seen", -1)
    return isinstance(seen, int | float) and seen >= 0
