"""What the policies of the object store let each identity do, by an evaluator of their few words."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest

from deploy.servers.s3_policies import (
    aggregator_policy,
    download_signer_policy,
    operator_policy,
    site_policy,
    upload_signer_policy,
)
from protocol.errors import ConfigError

BUCKET = "arn:aws:s3:::b"


def may(policy: dict[str, Any], action: str, key: str = "") -> bool:
    resource = f"{BUCKET}/{key}" if key else BUCKET
    return any(
        action in statement["Action"] and any(fnmatchcase(resource, pattern) for pattern in statement["Resource"])
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
    )


ACTIONS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket")
KEYS = (
    "up/site-a/x",
    "up/site-ab/x",
    "up/site-b/x",
    "models/x",
    "records/x",
    "heads/f",
    "state/x",
    "bundles/alice/x",
    "bundles/al/x",
    "",
)


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        (
            site_policy("b", "site-a"),
            {("s3:PutObject", "up/site-a/x")} | {("s3:GetObject", key) for key in ("models/x", "records/x", "heads/f")},
        ),
        (
            operator_policy("b", "alice"),
            {("s3:PutObject", "bundles/alice/x"), ("s3:GetObject", "models/x"), ("s3:GetObject", "records/x")},
        ),
        (upload_signer_policy("b"), {("s3:PutObject", key) for key in KEYS if key.startswith(("up/", "bundles/"))}),
        (download_signer_policy("b"), {("s3:GetObject", key) for key in ("models/x", "records/x", "heads/f")}),
        (
            aggregator_policy("b"),
            {(action, key) for action in ACTIONS[:3] for key in KEYS if key} | {("s3:ListBucket", "")},
        ),
    ],
    ids=["site", "operator", "upload signer", "download signer", "aggregator"],
)
def test_an_identity_may_do_exactly_this(policy: dict[str, Any], allowed: set[tuple[str, str]]) -> None:
    assert {(action, key) for action in ACTIONS for key in KEYS if may(policy, action, key)} == allowed


def test_no_signing_identity_both_reads_and_writes() -> None:
    for policy in (upload_signer_policy("b"), download_signer_policy("b")):
        actions = {action for statement in policy["Statement"] for action in statement["Action"]}
        assert len(actions) == 1


def test_a_name_with_a_wildcard_gets_no_policy() -> None:
    with pytest.raises(ConfigError, match="cannot name a site"):
        site_policy("b", "*")
    with pytest.raises(ConfigError, match="cannot name"):
        operator_policy("b", "*")
