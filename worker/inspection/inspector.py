"""What a site answers about itself: one function for each command, all of them reading and none of them private."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from protocol.codec import Value
from protocol.errors import ConfigError, StateError, Unauthorized
from worker.inspection import files
from worker.inspection.arguments import Arguments
from worker.inspection.logs import newest
from worker.inspection.safe_open import read
from worker.inspection.scrub import fitting, shortened
from worker.inspection.settings import environment_rows
from worker.inspection.system import machine
from worker.inspection.view import FileView
from worker.statistics import document

Answer = tuple[str, dict[str, Value]]
_PWD = "the worker's own folder: its log, health.json, settings.json and runs; where that lies stays at the site"


class Inspector:
    """Answers `logs`, `stats`, `sys.info` and `file.*`; rights, and whom the site obeys, were looked at before."""

    def __init__(
        self, state: Path, *, log_file: Path, environment: Mapping[str, str], statistics: bool = False
    ) -> None:
        """`state` is the worker's state directory, `log_file` the local log (`fledge.process.log.configure(also=…)`).

        With `statistics` the figures that were shared here are told.
        """
        self._state = state
        self._log_file = log_file
        self._environment = environment
        self._statistics = statistics
        self._view = FileView(state, log_file)
        self._commands: dict[str, Callable[[Arguments], Answer]] = {
            "logs": self._logs,
            "stats": self._stats,
            "sys.info": self._machine,
            "file.pwd": _pwd,
            "file.env": self._env,
            "file.ls": self._lines_of(files.ls),
            "file.cat": self._lines_of(files.cat),
            "file.head": self._lines_of(files.head),
            "file.tail": self._lines_of(files.tail),
            "file.grep": self._lines_of(files.grep),
        }

    @property
    def commands(self) -> frozenset[str]:
        """The names of the commands that are answered here."""
        return frozenset(self._commands)

    def answer(self, command: str, arguments: Mapping[str, Value]) -> Answer:
        """A text, and values that fit into a reply; reads files, and may take a few seconds.

        Raises:
            ConfigError: an argument is wrong.
            Unauthorized: what was asked for may not be looked at from afar.
            StateError: the machine does not let itself be asked.
        """
        answer = self._commands.get(command)
        if answer is None:
            raise ConfigError(f"{command} is not among what can be looked at: {', '.join(sorted(self._commands))}")
        try:
            return answer(Arguments(command, arguments))
        except OSError as error:  # its text names files
            kind = type(error).__name__
            raise StateError(f"{command} cannot be answered at this site now ({kind}); ask somebody there") from error

    def _logs(self, arguments: Arguments) -> Answer:
        found = newest(self._log_file, arguments)
        text = _count(found.lines)
        if found.missed:
            text += f"; {found.missed} before them are no longer at hand"
        return text, {"lines": found.lines, "next": found.next}

    def _stats(self, arguments: Arguments) -> Answer:
        arguments.done()
        if not self._statistics:
            raise Unauthorized(
                "this site's own policy (`statistics` in its policy.toml) lets no figures of its data leave"
            )
        try:
            raw = read(self._state, (document.STATISTICS,), document.LIMIT)
        except FileNotFoundError as error:
            raise StateError(
                "no figures are shared here; somebody there would say `fledge data stats --share`"
            ) from error
        return "figures of the site's data", {**document.columns(document.load(raw))}

    def _machine(self, arguments: Arguments) -> Answer:
        arguments.done()
        return "the site's machine", _table("metric", machine(self._state, self._environment))

    def _env(self, arguments: Arguments) -> Answer:
        arguments.done()
        return "settings in the worker's environment", _table("name", environment_rows(self._environment))

    def _lines_of(self, command: Callable[[FileView, Arguments], tuple[str, ...]]) -> Callable[[Arguments], Answer]:
        def answer(arguments: Arguments) -> Answer:
            lines = command(self._view, arguments)
            return _count(lines), {"lines": lines}

        return answer


def _pwd(arguments: Arguments) -> Answer:
    arguments.done()
    return _PWD, {}


def _count(lines: tuple[str, ...]) -> str:
    return f"{len(lines)} line{'' if len(lines) == 1 else 's'}"


def _table(first: str, rows: Iterable[tuple[str, str]]) -> dict[str, Value]:
    pairs = list(rows)
    pairs = pairs[: len(fitting([name + value for name, value in pairs]))]
    return {first: tuple(name for name, _ in pairs), "value": tuple(shortened(value) for _, value in pairs)}
