"""What Clara shows of users, sites, rights and rules, from the registry that the root signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fledge.shell.clara_usage import SERVER, exactly, one_of
from protocol.topology import AGGREGATOR

if TYPE_CHECKING:
    from fledge.shell.context import ShellContext
    from protocol.registry import Entry


def show_info(shell: ShellContext, words: Sequence[str]) -> None:
    """Who you are, and by which registry that is judged."""
    exactly(words)
    name, members = shell.session.console.name, shell.members
    known = {entry.name: entry for entry in _operators(shell)}
    entry = known.get(name)
    shell.say(
        f"user: {name}",
        f"organisation: {entry.organisation if entry else 'not a member (any more)'}",
        f"roles: {', '.join(entry.roles) if entry and entry.roles else '-'}",
        f"federation: {members.federation}, registry version {members.registry.version}, "
        f"encrypted with {members.registry.cipher}",
    )


def show_users(shell: ShellContext, words: Sequence[str]) -> None:
    """Every operator with organisation and roles."""
    exactly(words)
    found = _operators(shell)
    shell.table(
        {
            "user": [entry.name for entry in found],
            "org": [entry.organisation for entry in found],
            "roles": [", ".join(entry.roles) for entry in found],
        }
    )


def show_sites(shell: ShellContext, words: Sequence[str]) -> None:
    """Every site with its organisation, the server among them."""
    exactly(words)
    found = _sites(shell)
    shell.table({"site": list(found), "org": [entry.organisation for entry in found.values()]})


def show_rights(shell: ShellContext, words: Sequence[str]) -> None:
    """Every right with its default."""
    from protocol.rights import RIGHTS

    exactly(words)
    needs = ["own organisation" if right.endswith("_self") else None for right in RIGHTS]
    shell.table({"right": list(RIGHTS), "default": list(RIGHTS.values()), "precondition": needs})


def show_rules(shell: ShellContext, words: Sequence[str]) -> None:
    """Every rule of sites with its default."""
    from protocol.rights import RULES

    exactly(words)
    shell.table({"rule": list(RULES), "default": list(RULES.values())})


def show_config(shell: ShellContext, words: Sequence[str]) -> None:
    """The policy: which groups answer for an organisation, and what each group says."""
    exactly(words)
    policy = shell.members.registry.policy
    shell.table(
        {
            "org": [organisation.name for organisation in policy.organisations],
            "groups": [", ".join(organisation.groups) for organisation in policy.organisations],
        }
    )
    rows = [
        (group.name, role, right, value)
        for group in policy.groups
        for role, answers in (("(rule)", group.rules), *group.rights.items())
        for right, value in answers.items()
    ]
    columns = zip(*rows, strict=True) if rows else [()] * 4
    shell.table(dict(zip(("group", "role", "right", "value"), columns, strict=True)))


def eval_right(shell: ShellContext, words: Sequence[str]) -> None:
    """Whether an operator has a right at each of these sites.

    Raises:
        ConfigError: there is no such user, right or site.
    """
    from protocol.rights import RIGHTS

    user, right, *named = exactly(words, at_least=3)
    one_of(user, "user", [entry.name for entry in _operators(shell)])
    one_of(right, "right", RIGHTS)
    sites = [_site(shell, name) for name in named]
    rights = shell.members.registry.rights
    shell.table({"site": named, "allowed": [rights.right(user, right, site) for site in sites]})


def eval_rule(shell: ShellContext, words: Sequence[str]) -> None:
    """Whether something is allowed at a site.

    Raises:
        ConfigError: there is no such site or rule.
    """
    from protocol.rights import RULES

    name, rule = exactly(words, at_least=2, at_most=2)
    one_of(rule, "rule", RULES)
    shell.table({"site": [name], "allowed": [shell.members.registry.rights.rule(_site(shell, name), rule)]})


def _site(shell: ShellContext, name: str) -> str:
    sites = _sites(shell)
    one_of(name, "site", sites)
    return sites[name].name


def _sites(shell: ShellContext) -> dict[str, Entry]:
    from protocol.keys import Role

    held = [entry for entry in shell.members.registry.entries if entry.revoked is None]
    members = [entry for entry in held if entry.role in (Role.AGGREGATOR, Role.SITE)]
    return {SERVER if entry.name == AGGREGATOR else entry.name: entry for entry in members}


def _operators(shell: ShellContext) -> list[Entry]:
    from protocol.keys import Role

    entries = shell.members.registry.entries
    return [entry for entry in entries if entry.role == Role.OPERATOR and entry.revoked is None]
