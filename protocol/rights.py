"""Who may do what at which site: rights, stock roles and site rules after Clara's, evaluated the same way. Pure.

1. The role `super` has every right at every site.
2. A right that ends in `_self` is never had at a site of another organisation.
3. Else every group of the site's organisation is asked for every role of the operator: one yes is enough; without any
   yes one no forbids; where none says anything the right's default holds.
4. An action passes if at every target site one of its rights is had. Code and data lists of an operator's own
   (`byoc`, `custom_datalist`) are answered by the rules of the site's groups in the same way.
5. What the aggregator holds is of every site: whoever has no right there, but one at some sites, is answered about
   these alone (`reach`), and only where an answer can be cut down to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from protocol.codec import EXACT, Flag, Word, many
from protocol.errors import Unauthorized

SUPER = "super"


class Action(StrEnum):
    """What an operator may want to do; every command is one of these."""

    UPLOAD = "upload"
    DEPLOY = "deploy"
    TRAIN = "train"
    VIEW = "view"
    OPERATE = "operate"
    BYOC = "byoc"
    CUSTOM_DATALIST = "custom_datalist"


RIGHTS: Mapping[str, bool] = {
    "upload": True,
    "deploy_self": False,
    "deploy_all": False,
    "train_self": False,
    "train_all": False,
    "view_self": True,
    "view_all": False,
    "operate_self": False,
    "operate_all": False,
}
"""Every right with its default."""
RULES: Mapping[str, bool] = {"allow_byoc": False, "allow_custom_datalist": True}
"""Every rule of a site with its default."""
_RIGHTS_OF: Mapping[Action, tuple[str, ...]] = {
    Action.UPLOAD: ("upload",),
    **{
        action: (f"{action.value}_all", f"{action.value}_self")
        for action in (Action.DEPLOY, Action.TRAIN, Action.VIEW, Action.OPERATE)
    },
}
_RULE_OF: Mapping[Action, str] = {Action.BYOC: "allow_byoc", Action.CUSTOM_DATALIST: "allow_custom_datalist"}

_Answers = Annotated[dict[Word, Flag], Field(max_length=16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A set of answers that organisations subscribe to."""

    __pydantic_config__ = EXACT
    name: Word
    rules: _Answers
    """Of `RULES`, for sites."""
    rights: Annotated[dict[Word, _Answers], Field(max_length=64)]
    """Per role, of `RIGHTS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """The groups that answer for an organisation's sites."""

    __pydantic_config__ = EXACT
    name: Word
    groups: Annotated[tuple[Word, ...], many(16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The root-signed part of the registry that says who may do what."""

    __pydantic_config__ = EXACT
    groups: Annotated[tuple[Group, ...], many(64)] = ()
    organisations: Annotated[tuple[Organisation, ...], many(1500)] = ()


NO_POLICY = Policy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What the policy has to know of an operator."""

    organisation: str
    roles: tuple[str, ...]


ROLES = (SUPER, "lead_researcher", "site_researcher", "lead_it", "site_it")
"""The stock roles."""
STOCK = Policy(
    groups=(
        Group(name="relaxed", rules=dict.fromkeys(RULES, True), rights={}),
        Group(name="strict", rules=dict.fromkeys(RULES, False), rights={}),
        Group(
            name="general",
            rules={},
            rights={
                SUPER: {"operate_all": True, "view_all": True, "train_all": True},
                "lead_researcher": {"deploy_all": True, "train_all": True, "view_all": True},
                "site_researcher": {"deploy_self": True, "train_self": True, "view_self": True},
                "lead_it": {"operate_all": True, "view_all": True},
                "site_it": {"operate_self": True, "view_self": True},
            },
        ),
    )
)
"""The stock groups; researchers may also deploy what they train, which Clara left to a group of one's own."""


class Rights:
    """Answers questions about one policy; `sites` tells each site's organisation, the aggregator among them."""

    def __init__(self, policy: Policy, people: Mapping[str, Person], sites: Mapping[str, str]) -> None:
        self._groups = {group.name: group for group in policy.groups}
        self._of = {organisation.name: organisation.groups for organisation in policy.organisations}
        self._people = people
        self._sites = sites

    def right(self, operator: str, right: str, site: str) -> bool:
        """Whether an operator has a right of `RIGHTS` at a site; strangers have none, nowhere."""
        person = self._people.get(operator)
        if person is None or site not in self._sites:
            return False
        if SUPER in person.roles:
            return True
        if right.endswith("_self") and person.organisation != self._sites[site]:
            return False
        asked = (group.rights.get(role, {}) for group in self._groups_of(site) for role in person.roles)
        return _verdict((answers.get(right) for answers in asked), RIGHTS[right])

    def rule(self, site: str, rule: str) -> bool:
        """What a site's groups say about a rule of `RULES`; an unknown site allows nothing."""
        if site not in self._sites:
            return False
        return _verdict((group.rules.get(rule) for group in self._groups_of(site)), RULES[rule])

    def may(self, operator: str, action: Action, site: str) -> bool:
        """Whether an operator may do something at one site."""
        if action in _RULE_OF:
            return operator in self._people and self.rule(site, _RULE_OF[action])
        return any(self.right(operator, right, site) for right in _RIGHTS_OF[action])

    def check(self, operator: str, action: Action, sites: Iterable[str]) -> None:
        """Let pass what is allowed at every one of the sites.

        Raises:
            Unauthorized: names the first site where it is not.
        """
        for site in sites:
            if not self.may(operator, action, site):
                raise Unauthorized(
                    f"Authorization Error: {operator} is not authorized to {_words(action)} {site}; "
                    "ask whoever signs the registry for a role with that right"
                )

    def reach(self, operator: str, action: Action, hub: str) -> frozenset[str] | None:
        """The sites that an answer of the aggregator (`hub`) may be about; None: all there are.

        Raises:
            Unauthorized: the operator may do this neither there nor at any site.
        """
        if self.may(operator, action, hub):
            return None
        own = frozenset(site for site in self._sites if self.may(operator, action, site))
        if not own:
            self.check(operator, action, (hub,))
        return own

    def _groups_of(self, site: str) -> list[Group]:
        return [self._groups[name] for name in self._of.get(self._sites[site], ()) if name in self._groups]


def _verdict(answers: Iterable[bool | None], default: bool) -> bool:
    given = [answer for answer in answers if answer is not None]
    return any(given) if given else default


def _words(action: Action) -> str:
    return {
        Action.BYOC: "bring code of their own to",
        Action.CUSTOM_DATALIST: "bring a data list of their own to",
        Action.UPLOAD: "upload to",
        Action.DEPLOY: "deploy to",
        Action.TRAIN: "train at",
        Action.VIEW: "look at",
        Action.OPERATE: "operate",
    }[action]
