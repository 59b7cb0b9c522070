"""What SeaweedFS has to know about who may do what: the provisioner's `store.json` in SeaweedFS's own words.

    python seaweedfs.py BUCKET[/PREFIX] store.json > identities.json

The rights are the policies of `deploy.servers.s3_policies`, word for word. SeaweedFS has words of its own, too (`Read`,
`Write`), but `Write` includes deleting and `Admin` everything there is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.servers.rabbitmq import Definition
from deploy.servers.s3_policies import (
    aggregator_policy,
    download_signer_policy,
    operator_policy,
    site_policy,
    upload_signer_policy,
)
from protocol.topology import AGGREGATOR

_SITE, _OPERATOR = "site-", "operator-"


def identities(place: str, store: Mapping[str, list[dict[str, str]]]) -> Definition:
    """The configuration of SeaweedFS for `-s3.config`, from what the provisioner calls `store.json`."""
    return {
        "identities": [
            {
                "name": each["name"],
                "credentials": [{"accessKey": each["access_key"], "secretKey": each["secret_key"]}],
                "policyNames": [each["name"]],
            }
            for each in store["identities"]
        ],
        "policies": [
            {"name": each["name"], "content": json.dumps(_policy(place, each["name"]))} for each in store["identities"]
        ],
    }


def _policy(place: str, name: str) -> Definition:
    if name == AGGREGATOR:
        return _with_bucket(place, aggregator_policy(place))
    signers = {"sign-uploads": upload_signer_policy, "sign-downloads": download_signer_policy}
    if name in signers:
        return signers[name](place)
    if name.startswith(_OPERATOR):
        return operator_policy(place, name.removeprefix(_OPERATOR))
    return site_policy(place, name.removeprefix(_SITE))


def _with_bucket(place: str, policy: Definition) -> Definition:
    """Also make the bucket, which nothing else does before the first object."""
    bucket = place.partition("/")[0]
    made = {"Sid": "Bucket", "Effect": "Allow", "Action": ["s3:CreateBucket"], "Resource": [f"arn:aws:s3:::{bucket}"]}
    return policy | {"Statement": [*policy["Statement"], made]}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} BUCKET[/PREFIX] store.json > identities.json")
    sys.stdout.write(json.dumps(identities(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())), indent=1) + "\n")
