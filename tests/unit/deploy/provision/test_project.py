from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from deploy.provision.kit_files import example_project
from deploy.provision.project import Project, check_project, read_project
from protocol.cipher import Suite
from protocol.errors import ConfigError
from protocol.keys import Role
from protocol.rights import STOCK, Action, Person, Rights

PLAIN: dict[str, Any] = {
    "name": "clinics",
    "aggregator": {"org": "centre", "address": "hub.example"},
    "sites": [{"name": "north", "org": "nh"}, {"name": "south", "org": "sh"}],
    "operators": [{"name": "lead", "email": "lead@hub.example", "org": "nh", "roles": ["site_it"]}],
}
SITE, OPERATOR = PLAIN["sites"][0], PLAIN["operators"][0]


def project(**changes: Any) -> Project:
    return check_project({**copy.deepcopy(PLAIN), **changes})


def test_a_project_names_everybody_and_its_servers() -> None:
    made = project()
    assert [(each.name, each.role) for each in made.participants] == [
        ("aggregator", Role.AGGREGATOR),
        ("north", Role.SITE),
        ("south", Role.SITE),
        ("lead", Role.OPERATOR),
    ]
    assert made.broker_url == "amqps://hub.example:5671/clinics"
    assert made.store_url == "s3s://hub.example:443/clinics"


def test_servers_may_be_elsewhere_and_on_other_ports() -> None:
    hub = {"org": "centre", "address": "::1", "broker_port": 443}
    assert project(aggregator=hub).broker_url == "amqps://[::1]:443/clinics"
    given = project(broker="amqps://mq.example:443/v", store="s3s://s3.example:443/bucket")
    assert (given.broker_url, given.store_url) == ("amqps://mq.example:443/v", "s3s://s3.example:443/bucket")
    store = "s3s://s3.example:443/bucket/clinics?region=eu-central-1&cacertfile=system"
    assert project(store=store).store_url == store


def test_the_example_is_a_project(tmp_path: Path) -> None:
    path = tmp_path / "project.yml"
    path.write_text(example_project())
    made = read_project(path)
    assert [site.enrol for site in made.sites] == [False, True]
    assert made.cipher == "aegis256"
    # What is commented out is right as well.
    every = "".join(
        line.replace("# ", "", 1) if line.startswith(("# broker", "# store", "# organ", "# groups", "#   ")) else line
        for line in example_project().splitlines(keepends=True)
    )
    path.write_text(every)
    assert read_project(path).groups["cautious"].rights == {"site_researcher": {"train_self": False}}


def test_every_suite_can_be_named_and_none_need_be() -> None:
    assert [project(cipher=suite.word).cipher for suite in Suite] == ["xchacha20", "aegis256"]
    assert project().cipher is None


def rights(made: Project) -> Rights:
    sites = {each.name: each.organisation for each in made.participants if each.role != Role.OPERATOR}
    people = {each.name: Person(organisation=each.organisation, roles=each.roles) for each in made.participants}
    return Rights(made.policy, people, sites)


def test_without_a_policy_the_stock_groups_answer_for_everybody() -> None:
    assert project().policy.groups == STOCK.groups
    asked = rights(project())
    assert asked.may("lead", Action.OPERATE, "north")
    assert not asked.may("lead", Action.OPERATE, "south")


def test_groups_of_ones_own_stand_beside_the_stock_ones_or_replace_them() -> None:
    groups = {"closed": {"rights": {"site_it": {"operate_self": False}}}, "strict": {"rules": {"allow_byoc": True}}}
    made = project(groups=groups, organisations={"nh": ["closed", "strict"]})
    assert len(made.policy.groups) == len(STOCK.groups) + 1
    asked = rights(made)
    assert not asked.may("lead", Action.OPERATE, "north")
    assert asked.may("lead", Action.BYOC, "north")
    assert not asked.may("lead", Action.BYOC, "south")


URLS = {"broker": "amqps://{}:5671/v", "store": "s3s://{}:443/bucket"}
NO_HOSTS = [
    "$(id)",
    "`id`",
    "a'b",
    'a"b',
    "a b",
    "a\nb",
    "a\x7fb",
    "a;b",
    "a\\b",
    "-x",
    ".",
    "caf\xe9.example",
    "a\u202eb",
]
"""What must not come into scripts, explanations and settings of kits."""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"brokr": "x"}, "brokr is unknown; did you mean 'broker'?"),
        ({"sites": [{**SITE, "orgg": "x"}]}, r"sites\[north\].orgg is unknown; did you mean 'org'?"),
        ({"aggregator": {**PLAIN["aggregator"], "port": 1}}, "aggregator.port is unknown"),
        ({"groups": {"g": {"rihts": {}}}}, "groups.g.rihts is unknown; did you mean 'rights'?"),
        ({"he": {"lib": "x"}}, "`he` is reserved"),
        ({"sites": [SITE, SITE]}, "'north' stands for two"),
        ({"operators": [{**OPERATOR, "name": "north"}]}, "'north' stands for two"),
        ({"sites": [{"name": "North", "org": "nh"}]}, "'North' cannot name a site"),
        ({"sites": [{"name": "north"}]}, r"sites\[north\].org is missing"),
        ({"sites": [{"name": False, "org": "nh"}]}, "name: False will not do; put it in quotes"),
        ({"sites": []}, "sites: .*at least 1 needed"),
        ({"name": "two words"}, "'two words' will not do; use letters"),
        ({"operators": [{**OPERATOR, "email": "lead"}]}, "operator lead: 'lead' is no e-mail address"),
        ({"operators": [{**OPERATOR, "email": "a@b"}]}, "no e-mail address"),
        ({"operators": [OPERATOR, {**OPERATOR, "name": "two"}]}, "lead@hub.example stands for two operators"),
        ({"operators": [{**OPERATOR, "roles": ["siteit"]}]}, "role 'siteit' is unknown; did you mean 'site_it'?"),
        ({"operators": [{**OPERATOR, "roles": []}]}, "operator lead has no role"),
        ({"operators": [{**OPERATOR, "roles": "super"}]}, "write a list"),
        ({"groups": {"g": {"rules": {"allow_all": True}}}}, "rule 'allow_all' is unknown"),
        ({"groups": {"g": {"rights": {"super": {"fly": True}}}}}, "role super: right 'fly' is unknown; known: deploy"),
        ({"groups": {"g": {"rules": {"allow_byoc": "maybe"}}}}, "write true or false"),
        ({"organisations": {"nhh": ["general"]}}, "org 'nhh' is unknown; did you mean 'nh'?"),
        ({"organisations": {"nh": ["genral"]}}, "group 'genral' is unknown; did you mean 'general'?"),
        ({"broker": "amqp://mq.example:5672/v"}, "not encrypted; write amqps://, or `insecure: true`"),
        ({"store": "s3://s3.example:80/bucket"}, "not encrypted"),
        ({"broker": "amqps://mq.example/v"}, "the port included"),
        ({"broker": "amqps://mq.example:5671"}, "needs a vhost"),
        ({"store": "s3s://s3.example:443/B"}, "a bucket has 3 to 63"),
        ({"store": "s3s://s3.example:x/b"}, "store is not a URL"),
        ({"store": "s3s://s3.example:443/bucket/models"}, "no part of a prefix may be 'models'"),
        ({"store": "s3s://s3.example:443/bucket?cacertfile=/etc/ca.pem"}, "options that are everybody's"),
        ({"store": "s3s://s3.example:443/bucket?deadline=5"}, "options that are everybody's"),
        ({"store": "s3s://s3.amazonaws.com:443/bucket"}, "such as s3.eu-central-1.amazonaws.com"),
        *(({key: url.format(host)}, "no blanks stand in a URL") for key, url in URLS.items() for host in NO_HOSTS),
        *(({key: url.format("a.example") + "\n"}, "no blanks stand in a URL") for key, url in URLS.items()),
        ({"broker": "amqps://mq.example:443/v?region=eu"}, "options that are everybody's"),
        ({"trainer": "mytask"}, "write it as module:factory"),
        ({"access": "free"}, "access: 'free' will not do; write 'credentials' or 'presigned'"),
        ({"cipher": "aes"}, "cipher: 'aes' will not do; write 'aegis256' or 'xchacha20'"),
        ({"certificate_days": 0}, "certificate_days"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        project(**changes)
    assert "\n" not in str(refused.value)


def test_a_password_in_a_url_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="holds a user or password") as refused:
        project(broker="amqps://me:hunter2@mq.example:5671/v")
    assert "hunter2" not in str(refused.value)


def test_plain_servers_are_for_this_machine_or_for_trials() -> None:
    assert project(broker="amqp://127.0.0.1:5672/v", store="s3://localhost:9000/bucket")
    assert project(broker="amqp://mq.example:5672/v", insecure=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"name: a\nname: b\n", "line 1: 'name' stands there twice"),
        (b"sites:\n  - {name: a, name: b}\n", "line 2: 'name' stands there twice"),
        (b"a: [1", "line 1: not valid YAML"),
        (b"x: &a [*a]", "not valid YAML"),
        (b"name: 2024-13-45\n", "is missing"),
        (b"name: !!int abc\n", "is missing"),
        (b"1: x\n", "1 is unknown"),
        (b"a: &a {x: 1}\nb: {<<: [*a, *a]}\n", "is unknown"),
        (b"", "a table that begins with `name:`"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"a: !!python/object:os.system x", "is unknown"),
        (b"[" * 100_000, "not valid YAML"),
        (b"a" * (1024**2 + 1), "larger than"),
    ],
)
def test_a_file_that_holds_no_project_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "project.yml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=says) as refused:
        read_project(path)
    assert str(refused.value).startswith(str(path))


def test_a_missing_file_is_answered_with_where_to_find_an_example(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fledge provision --example"):
        read_project(tmp_path / "project.yml")
