"""All of OpenStack's Swift with its S3 interface, on one disk: `python swift_server.py FOLDER PORT KEY SECRET`.

Runs in Swift's own virtual environment, each of the four servers in a process that ends with this one. The key has to
be `ACCOUNT:USER`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys
from pathlib import Path

import eventlet
from swift.common import constraints, storage_policy, utils, wsgi
from swift.common.ring.builder import RingBuilder

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_PIPELINE = "catch_errors gatekeeper cache s3api tempauth copy slo dlo versioned_writes proxy-server"
_KINDS = ("account", "container", "object")


def _write_rings(folder: Path, ports: dict[str, int]) -> None:
    for kind, port in ports.items():
        builder = RingBuilder(part_power=2, replicas=1, min_part_hours=1)
        builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1})
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


def _write_settings(folder: Path, ports: dict[str, int], port: int, key: str, secret: str) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    common = f"[DEFAULT]\nswift_dir = {folder}\ndevices = {folder}\nmount_check = false\nuser = {user}\n"
    common += "bind_ip = 127.0.0.1\nworkers = 0\nlog_level = ERROR\ndisable_fallocate = true\nfallocate_reserve = 0\n"
    for kind, own in ports.items():
        app = f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        (folder / f"{kind}.conf").write_text(f"{common}bind_port = {own}\n{app}")
    account, _, name = key.partition(":")
    more = {
        "cache": "use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:1\nerror_suppression_limit = 0\n",
        "tempauth": f"use = egg:swift#tempauth\nuser_{account}_{name} = {secret} .admin\n",
        "versioned_writes": "use = egg:swift#versioned_writes\nallow_versioned_writes = true\n",
    }
    filters = "".join(
        f"[filter:{name}]\n{more.get(name, f'use = egg:swift#{name}' + chr(10))}" for name in _PIPELINE.split()[:-1]
    )
    app = "[app:proxy-server]\nuse = egg:swift#proxy\nallow_account_management = true\naccount_autocreate = true\n"
    pipeline = f"[pipeline:main]\npipeline = {_PIPELINE}\n"
    (folder / "proxy.conf").write_text(f"{common}bind_port = {port}\n{pipeline}{app}{filters}")


def _serve(folder: Path, kind: str) -> None:
    conf = utils.readconf(str(folder / f"{kind}.conf"), f"app:{kind}-server")
    conf["__file__"] = str(folder / f"{kind}.conf")
    sock = eventlet.listen(("127.0.0.1", int(conf["bind_port"])), backlog=1024)
    wsgi.run_server(conf, utils.get_logger(conf, kind, log_to_console=True), sock)


def main() -> None:
    """Write what the servers have to know and serve until killed."""
    folder, port, key, secret = Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    (folder / "disk").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = a-test\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    utils.SWIFT_CONF_FILE = str(folder / "swift.conf")
    utils.monkey_patch()
    utils.validate_hash_conf()
    constraints.reload_constraints()
    storage_policy.reload_storage_policies()
    ports = {kind: int(given) for kind, given in zip(_KINDS, sys.argv[5:], strict=True)}
    _write_rings(folder, ports)
    _write_settings(folder, ports, port, key, secret)
    for kind in _KINDS:
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
            _serve(folder, kind)
            return
    _serve(folder, "proxy")


if __name__ == "__main__":
    main()
