"""Clara's console commands, in one table: what each becomes here.

A client is a site, the server is the aggregator, run number N is the run `run-N`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fledge.shell import clara_actions as acts
from fledge.shell import clara_policy as policy
from fledge.shell import clara_runs
from fledge.shell.clara_usage import Misused
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from fledge.shell.context import ShellContext

Act = Callable[["ShellContext", Sequence[str]], None]
HELP = ("help", "?")


@dataclass(frozen=True, slots=True)
class ClaraCommand:
    """One of Clara's commands."""

    scope: str
    """Clara's word for the group; empty: nothing leaves this machine."""
    usage: str
    ours: str
    """What it becomes here."""
    summary: str
    act: Act

    @property
    def name(self) -> str:
        """The word it is called by."""
        return self.usage.split()[0]

    def obey(self, shell: ShellContext, words: Sequence[str]) -> None:
        """Do what it does.

        Raises:
            ConfigError: the words after it are not as its usage has them, or it cannot be done.
        """
        try:
            self.act(shell, words)
        except Misused as error:
            raise ConfigError(f"usage: {self.usage}" + (f" ({error})" if str(error) else "")) from None


def _command(scope: str, usage: str, ours: str, act: Act) -> ClaraCommand:
    return ClaraCommand(scope, usage, ours, (act.__doc__ or "").partition("\n")[0], act)


_TARGET = "server|client [SITE ...]"
_LOCAL = "answered from the kit"
_REGISTRY = "answered from the kit's signed registry"

CLARA = (
    _command("", "bye", "leaves; what was ordered goes on", acts.bye),
    _command("", "lpwd", "local", acts.lpwd),
    _command("", "info", "local", acts.info),
    _command("training", f"check_status {_TARGET}", "`status`", acts.check_status),
    _command("training", "set_run_number N", "chooses `run-N` for the commands that follow", clara_runs.set_run_number),
    _command(
        "file_transfer",
        "upload_folder FOLDER",
        "the first half of `run create`: sends a folder that `fledge init-run` made as `run-N`",
        clara_runs.upload_folder,
    ),
    _command(
        "training",
        "deploy FOLDER server|client [SITE ...]",
        "server: the other half of `run create`; client: `run deploy`",
        clara_runs.deploy,
    ),
    _command("training", f"start {_TARGET}", "server: `run start`; client: `run join`", clara_runs.start),
    _command(
        "training",
        "start_mgpu client NGPU [SITE]",
        "refused: each site's own configuration decides; `sys_info client SITE` lists what it has",
        clara_runs.start_mgpu,
    ),
    _command(
        "training",
        f"abort {_TARGET}",
        "server: `run abort`; client: `run leave`, which `start client` takes back",
        acts.abort,
    ),
    _command("training", "abort_task SITE", "`run leave`", clara_runs.abort_task),
    _command("training", "delete_run_number N", "`run delete --sites`", clara_runs.delete_run_number),
    _command("file_transfer", "download_folder NAME", "a folder with both of the next two", clara_runs.download_folder),
    _command(
        "file_transfer", "download_binary NAME ...", "`model export` into NAME.safetensors", clara_runs.download_binary
    ),
    _command("file_transfer", "download_text NAME ...", "`run show` into a file", clara_runs.download_text),
    _command("training", "set_timeout SECONDS", "local, like `--timeout`", acts.set_timeout),
    _command("training", "taskname", _LOCAL, acts.taskname),
    _command(
        "sys", "restart client [SITE ...]|server|all", "`site restart`; the aggregator where it runs", acts.restart
    ),
    _command(
        "sys",
        "shutdown client [SITE ...]|server|all",
        "client: `site shutdown`; server: `run stop`, the aggregator goes on answering",
        acts.shutdown,
    ),
    _command("sys", "remove_client SITE ...", "`site quarantine`, which `site readmit` takes back", acts.remove_client),
    _command("sys", "sys_info client [SITE ...]", "`sys info`", acts.sys_info),
    _command("shell", "pwd SITE", "`file pwd`", acts.pwd),
    _command("shell", "env SITE", "`file env`", acts.env),
    _command("shell", "ls SITE [-a -l -t -S -R -u] [FOLDER]", "`file ls`", acts.ls),
    _command("shell", "cat SITE [-n -b -s -T] FILE", "`file cat`", acts.cat),
    _command("shell", "head SITE [-n LINES] [-c BYTES] FILE", "`file head`", acts.head),
    _command("shell", "tail SITE [-n LINES] [-c BYTES] FILE", "`file tail`", acts.tail),
    _command("shell", "grep SITE [-n -i -b] PATTERN FILE", "`file grep`", acts.grep),
    _command(
        "validation",
        "validate all|SITE [server|VERSION]",
        "`metrics`, as JSON; sites measure versions of the global model, never each other's",
        acts.validate,
    ),
    _command("info", f"show_stats {_TARGET}", "server: `run show` and `metrics`; client: `status`", acts.show_stats),
    _command("info", f"show_errors {_TARGET}", "server: `dead list`; client: `logs --grep error`", acts.show_errors),
    _command("info", "reset_errors server", "`dead purge`; a site's log is the site's own", acts.reset_errors),
    _command("job", "list_jobs [-n PREFIX] [-d] [RUN]", "`run list`", acts.list_jobs),
    _command("job", "submit_job FOLDER", "`run create`, `run deploy`, `run start`", clara_runs.submit_job),
    _command("job", "abort_job RUN", "`run abort`", acts.abort_job),
    _command("job", "clone_job JOB [NEW]", "`run clone`", clara_runs.clone_job),
    _command("job", "download_job JOB", "as `download_folder`, by the run's name", clara_runs.download_job),
    _command("job", "delete_job JOB", "`run delete --sites`", clara_runs.delete_job),
    _command("authz", "show_info", _REGISTRY, policy.show_info),
    _command("authz", "show_users", _REGISTRY, policy.show_users),
    _command("authz", "show_sites", _REGISTRY, policy.show_sites),
    _command("authz", "show_rules", "local: the rules there are", policy.show_rules),
    _command("authz", "show_rights", "local: the rights there are", policy.show_rights),
    _command("authz", "show_config", _REGISTRY, policy.show_config),
    _command("authz", "eval_right USER RIGHT SITE ...", _REGISTRY, policy.eval_right),
    _command("authz", "eval_rule SITE RULE", _REGISTRY, policy.eval_rule),
)
"""Every command of Clara's console but `help`, which the table itself answers."""
_BY_NAME = {command.name: command for command in CLARA}


def find(name: str) -> ClaraCommand | None:
    """The command of this name, which may have its scope before it (`shell.ls`)."""
    scope, dot, plain = name.rpartition(".")
    found = _BY_NAME.get(plain)
    return None if found is None or (dot and found.scope != scope) else found


def show_help(shell: ShellContext, words: Sequence[str]) -> None:
    """Show every command in tables, or how one is used.

    Raises:
        ConfigError: there is no such command.
    """
    if words:
        _explain(shell, words)
        return
    for title, commands in (
        ("Client commands", [command for command in CLARA if not command.scope]),
        ("Server commands", [command for command in CLARA if command.scope]),
    ):
        shell.say(title)
        rows = [(command.scope or "-", command.name, command.summary) for command in commands]
        if title == "Client commands":
            rows += [("-", "help", "What commands there are; ? COMMAND shows how one is used.")]
        _table(shell, rows)
    shell.say("fledge's own commands, as in `fledge ctl`")
    own = shell.commands.items()
    rows = [(first, f"{first} {second}".strip(), about) for first, each in own for second, about in each.items()]
    _table(shell, rows)


def _table(shell: ShellContext, rows: Sequence[tuple[str, str, str]]) -> None:
    shell.table(dict(zip(("scope", "command", "description"), zip(*rows, strict=True), strict=True)))


def _explain(shell: ShellContext, words: Sequence[str]) -> None:
    if (found := find(words[0])) is not None:
        shell.say(f"usage: {found.usage}", found.summary, f"here: {found.ours}")
    elif words[0] in shell.commands:
        shell.own([*words, "--help"])
    else:
        raise ConfigError(f"there is no command {words[0]!r}; help lists them")
