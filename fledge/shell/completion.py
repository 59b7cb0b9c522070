"""What could stand next in a line of the shell: commands, sites, runs. No server is asked for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from fledge.shell.clara import CLARA, HELP, find
from fledge.shell.clara_usage import CLIENT, SERVER
from protocol.errors import FledgeError

if TYPE_CHECKING:
    from fledge.shell.context import ShellContext

_OF_RUNS = ("run", "abort_job", "clone_job", "delete_job", "download_job", "list_jobs", "metrics")


def candidates(
    words: Sequence[str], own: Mapping[str, Mapping[str, str]], sites: Sequence[str], runs: Sequence[str]
) -> list[str]:
    """What may follow these words."""
    if not words:
        return sorted({*(command.name for command in CLARA), *own, "help"})
    if words[0] in HELP:
        return candidates(words[1:], own, (), ())
    command = find(words[0])
    if command is None and len(words) == 1 and "" not in own.get(words[0], {"": ""}):
        return sorted(own[words[0]])
    if words[0] in _OF_RUNS:
        return list(runs)
    if command is not None and f"{SERVER}|{CLIENT}" in command.usage and len(words) == 1:
        return [SERVER, CLIENT]
    return list(sites)


class ShellCompleter(Completer):
    """Completes for prompt_toolkit from what the shell knows."""

    def __init__(self, shell: ShellContext) -> None:
        self._shell = shell

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Everything that begins as the word before the cursor does."""
        before = document.text_before_cursor
        words = before.split()
        begun = words.pop() if words and not before[-1].isspace() else ""
        try:
            sites = self._shell.members.sites()
        except FledgeError:
            sites = []
        for word in candidates(words, self._shell.commands, sites, sorted(self._shell.runs)):
            if word.startswith(begun):
                yield Completion(word, start_position=-len(begun))
