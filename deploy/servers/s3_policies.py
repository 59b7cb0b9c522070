"""What each identity of the object store may do, as policies in the words of AWS, which S3 servers read.

Only the aggregator may list, delete or overwrite anything. No identity that signs URLs may both read and write:
some servers let an upload URL copy whatever its signer can read (an unsigned `x-amz-copy-source` header is enough).

`place` is what follows the host in the store's URL: the bucket, or `bucket/prefix`.
"""

from __future__ import annotations

from collections.abc import Sequence

from deploy.servers.rabbitmq import Definition
from protocol.topology import check_site

PUBLISHED = ("models/*", "records/*", "heads/*")
"""What the aggregator publishes; all of it is encrypted or signed."""


def site_policy(place: str, site: str) -> Definition:
    """A site with credentials of its own: put below its prefix, get what is published."""
    return _policy(
        _allow("Upload", ["s3:PutObject"], place, [f"up/{check_site(site)}/*"]),
        _allow("Download", ["s3:GetObject"], place, PUBLISHED),
    )


def operator_policy(place: str, operator: str) -> Definition:
    """An operator with credentials of their own: put runs below their prefix, get models and what describes them."""
    return _policy(
        _allow("Upload", ["s3:PutObject"], place, [f"bundles/{check_site(operator)}/*"]),
        _allow("Download", ["s3:GetObject"], place, ["models/*", "records/*"]),
    )


def upload_signer_policy(place: str) -> Definition:
    """Who signs upload URLs: put below the prefixes of sites and operators, get nothing."""
    return _policy(_allow("Upload", ["s3:PutObject"], place, ["up/*", "bundles/*"]))


def download_signer_policy(place: str) -> Definition:
    """Who signs download URLs: get what is published, put nothing."""
    return _policy(_allow("Download", ["s3:GetObject"], place, PUBLISHED))


def aggregator_policy(place: str) -> Definition:
    """The aggregator: everything in its own place, and nothing that changes the bucket itself."""
    bucket, _, prefix = place.partition("/")
    below = {"Condition": {"StringLike": {"s3:prefix": [f"{prefix}/*"]}}} if prefix else {}
    listing = {"Sid": "List", "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{bucket}"]}
    objects = _allow("Objects", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], place, ["*"])
    return _policy(objects, listing | below)


def _policy(*statements: Definition) -> Definition:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(name: str, actions: Sequence[str], place: str, keys: Sequence[str]) -> Definition:
    resources = [f"arn:aws:s3:::{place}/{key}" for key in keys]
    return {"Sid": name, "Effect": "Allow", "Action": list(actions), "Resource": resources}
