"""What SeaweedFS has to know about who may do what: the provisioner's `store.json` in SeaweedFS's own words.

    python seaweedfs.py BUCKET store.json > identities.json

The rights are those of `deploy.s3_policies`. SeaweedFS knows one right for putting and deleting, so sites and operators
can delete what they uploaded themselves, and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.s3_policies import download_signer_policy, operator_policy, site_policy, upload_signer_policy
from deploy.topology import Definition
from protocol.topology import AGGREGATOR

_WORDS = {"s3:GetObject": "Read", "s3:PutObject": "Write"}
_SITE, _OPERATOR = "site-", "operator-"
_ARN = "arn:aws:s3:::"


def identities(bucket: str, store: Mapping[str, list[dict[str, str]]]) -> Definition:
    """The configuration of SeaweedFS for `-s3.config`, from what the provisioner calls `store.json`."""
    return {
        "identities": [
            {
                "name": each["name"],
                "credentials": [{"accessKey": each["access_key"], "secretKey": each["secret_key"]}],
                "actions": _actions(bucket, each["name"]),
            }
            for each in store["identities"]
        ]
    }


def _actions(bucket: str, name: str) -> list[str]:
    if name == AGGREGATOR:
        # It makes the bucket with its first object, which only who administers a bucket may do.
        return [f"Admin:{bucket}"]
    signers = {"sign-uploads": upload_signer_policy, "sign-downloads": download_signer_policy}
    if name in signers:
        policy = signers[name](bucket)
    elif name.startswith(_OPERATOR):
        policy = operator_policy(bucket, name.removeprefix(_OPERATOR))
    else:
        policy = site_policy(bucket, name.removeprefix(_SITE))
    return [
        f"{_WORDS[action]}:{resource.removeprefix(_ARN)}"
        for statement in policy["Statement"]
        for action in statement["Action"]
        for resource in statement["Resource"]
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(identities(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())), indent=1) + "\n")
