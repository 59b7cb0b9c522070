"""What SeaweedFS has to know about who may do what: the provisioner's `store.json` in SeaweedFS's own words.

    python -m deploy.docker.seaweedfs BUCKET[/PREFIX] store.json identities.json

The rights are the policies of `deploy.servers.s3_policies`, word for word. SeaweedFS has words of its own, too (`Read`,
`Write`), but `Write` includes deleting and `Admin` everything there is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.keyfiles import read_bounded, replace_as_was
from deploy.servers.rabbitmq import Definition
from deploy.servers.s3_policies import (
    aggregator_policy,
    download_signer_policy,
    operator_policy,
    site_policy,
    upload_signer_policy,
)
from protocol.errors import ConfigError
from protocol.topology import AGGREGATOR

_STORE_LIMIT = 16 * 1024**2
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


def write_identities(place: str, store: Path, out: Path) -> int:
    """Write the configuration to `out` and return how many identities it holds; they are secret keys.

    The file is its owner's alone. One that is there keeps owner and group, and whether the group may read it.

    Raises:
        ConfigError: `store` is not what the provisioner wrote, or `out` cannot be written.
    """
    try:
        told = identities(place, json.loads(read_bounded(store, _STORE_LIMIT, "the provisioner's store.json")))
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{store} is not the provisioner's store.json; copy it from there again") from None
    replace_as_was(out, json.dumps(told, indent=1).encode() + b"\n")
    return len(told["identities"])


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python {sys.argv[0]} BUCKET[/PREFIX] store.json identities.json")
    try:
        write_identities(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    except ConfigError as error:
        sys.exit(str(error))
