"""Clara's rules, as tables: each stock role with each action, at a site of its own organisation and at another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Unauthorized
from protocol.rights import RIGHTS, ROLES, STOCK, Action, Group, Organisation, Person, Policy, Rights

SITES = {"own": "here", "other": "there", "aggregator": "hub", "strict": "guarded", "nowhere": "unknown-org"}
ORGANISATIONS = (
    Organisation(name="here", groups=("general", "relaxed")),
    Organisation(name="there", groups=("general", "relaxed")),
    Organisation(name="hub", groups=("general",)),
    Organisation(name="guarded", groups=("general", "strict")),
)


def rights(*roles: str, groups: tuple[Group, ...] = STOCK.groups, at: str = "here") -> Rights:
    policy = Policy(groups=groups, organisations=ORGANISATIONS)
    return Rights(policy, {"somebody": Person(organisation=at, roles=roles)}, SITES)


EVERYWHERE, AT_HOME, NOWHERE = ("own", "other"), ("own",), ()
TABLE = {
    "super": dict.fromkeys(("upload", "deploy", "train", "view", "operate"), EVERYWHERE),
    "lead_researcher": {
        "upload": EVERYWHERE,
        "deploy": EVERYWHERE,
        "train": EVERYWHERE,
        "view": EVERYWHERE,
        "operate": NOWHERE,
    },
    "site_researcher": {
        "upload": EVERYWHERE,
        "deploy": AT_HOME,
        "train": AT_HOME,
        "view": AT_HOME,
        "operate": NOWHERE,
    },
    "lead_it": {
        "upload": EVERYWHERE,
        "deploy": NOWHERE,
        "train": NOWHERE,
        "view": EVERYWHERE,
        "operate": EVERYWHERE,
    },
    "site_it": {"upload": EVERYWHERE, "deploy": NOWHERE, "train": NOWHERE, "view": AT_HOME, "operate": AT_HOME},
}


def test_the_table_has_every_stock_role() -> None:
    assert set(TABLE) == set(ROLES)


@pytest.mark.parametrize("role", TABLE)
@pytest.mark.parametrize("action", ["upload", "deploy", "train", "view", "operate"])
def test_a_stock_role_may_what_the_table_says(role: str, action: str) -> None:
    allowed = tuple(site for site in ("own", "other") if rights(role).may("somebody", Action(action), site))
    assert allowed == TABLE[role][action]


def test_without_any_word_the_defaults_hold() -> None:
    nobody = rights("unheard-of")
    assert nobody.may("somebody", Action.UPLOAD, "other")
    assert nobody.may("somebody", Action.VIEW, "own")
    assert not nobody.may("somebody", Action.VIEW, "other")
    assert not any(nobody.may("somebody", Action(name), "own") for name in ("deploy", "train", "operate"))


def test_one_yes_outweighs_any_number_of_no() -> None:
    groups = (
        Group(name="general", rules={}, rights={"r": {"train_all": False}, "s": {"train_all": True}}),
        Group(name="relaxed", rules={}, rights={"r": {"train_all": False}}),
    )
    assert rights("r", "s", groups=groups).may("somebody", Action.TRAIN, "other")
    assert not rights("r", groups=groups).may("somebody", Action.TRAIN, "other")


def test_a_no_outweighs_a_default_of_yes() -> None:
    groups = (Group(name="general", rules={}, rights={"r": {"view_self": False, "upload": False}}),)
    assert not rights("r", groups=groups).may("somebody", Action.VIEW, "own")
    assert not rights("r", groups=groups).may("somebody", Action.UPLOAD, "own")


def test_code_and_data_lists_are_answered_by_the_sites_rules() -> None:
    asked = rights("super")
    assert asked.may("somebody", Action.BYOC, "own")
    assert not asked.may("somebody", Action.BYOC, "aggregator")
    assert not asked.may("somebody", Action.BYOC, "strict")
    assert asked.may("somebody", Action.CUSTOM_DATALIST, "aggregator")
    assert not asked.may("somebody", Action.CUSTOM_DATALIST, "strict")


def test_strangers_and_unknown_sites_have_nothing() -> None:
    asked = rights("super")
    assert not asked.may("stranger", Action.VIEW, "own")
    assert not asked.may("stranger", Action.BYOC, "own")
    assert not asked.may("somebody", Action.VIEW, "not-there")
    assert not asked.may("somebody", Action.CUSTOM_DATALIST, "not-there")


def test_an_action_has_to_be_allowed_at_every_target_and_the_refusal_names_the_first_that_is_not() -> None:
    rights("site_researcher").check("somebody", Action.TRAIN, ["own"])
    with pytest.raises(Unauthorized, match="not authorized to train at other"):
        rights("site_researcher").check("somebody", Action.TRAIN, ["own", "other"])
    with pytest.raises(Unauthorized, match="code of their own to strict"):
        rights("super").check("somebody", Action.BYOC, ["strict"])


@given(
    st.lists(st.sampled_from(ROLES), max_size=2),
    st.sampled_from(["here", "there", "hub", "elsewhere"]),
    st.dictionaries(st.sampled_from(ROLES), st.dictionaries(st.sampled_from(sorted(RIGHTS)), st.booleans())),
    st.sampled_from([Action.VIEW, Action.OPERATE, Action.TRAIN, Action.DEPLOY]),
)
def test_what_an_answer_may_be_about_is_where_its_reader_has_the_right_or_everything_with_a_right_at_the_hub(
    roles: list[str], at: str, own: dict[str, dict[str, bool]], action: Action
) -> None:
    groups = (*(each for each in STOCK.groups if each.name != "general"), Group(name="general", rules={}, rights=own))
    known = rights(*roles, groups=groups, at=at)
    allowed = {site for site in SITES if known.may("somebody", action, site)}
    if not allowed:
        with pytest.raises(Unauthorized):
            known.reach("somebody", action, "aggregator")
    else:
        found = known.reach("somebody", action, "aggregator")
        assert found == (None if "aggregator" in allowed else allowed)
    with pytest.raises(Unauthorized):
        known.reach("nobody", action, "aggregator")
