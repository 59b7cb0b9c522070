"""The doctor's rules: what is the first thing in the way, what may be told, and what counts as refused."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import msgpack
import pytest

from aggregator.domain.events import SiteSeen
from aggregator.intake import Intake
from aggregator.journal.journal import Journal as HubJournal
from broker.blobs.s3.http import BoundedPool
from broker.blobs.s3.store import S3Blobs
from broker.blobs.s3.url import S3Url, parse_s3_url
from broker.net.tls import Tls
from broker.runtime.health import HUB_LONGEST_S, Health
from broker.transport.base import Delivery
from broker.transport.memory import MemoryTransport
from fledge.connections import broker_of
from fledge.doctor.checks.local import (
    check_certificate,
    check_cipher,
    check_disk,
    check_filters,
    check_keys,
    check_memory,
    check_private,
    check_registry,
    check_service,
)
from fledge.doctor.checks.permissions import forbidden, needed, own
from fledge.doctor.checks.store import SKEW_S, check_clock
from fledge.doctor.checks.store_attacks import (
    Attack,
    AttackOutcome,
    Targets,
    copies,
    own_copies,
    with_credentials,
    without_signature,
)
from fledge.doctor.examine import examine
from fledge.doctor.findings import Finding, Server, Verdict, bad, good, warning
from fledge.doctor.members import newest_registry
from fledge.doctor.place import Place, read_kit
from fledge.doctor.report import DoctorReport
from fledge.doctor.submit import sign_of, tell_hub
from fledge.health import hub_health, site_health
from protocol.cipher import Suite
from protocol.codec import decode, encode
from protocol.envelope import seal
from protocol.errors import ConfigError
from protocol.keys import Role
from protocol.messages import Event, Kind, Reply
from protocol.registry import Registry, sign_registry
from protocol.topology import event_queue, topology
from tests.support.kits import Kits
from worker.domain.writes import NoteRegistry
from worker.journal.journal import Journal as WorkerJournal

BROKER = Server(name="broker", host="broker.example", port=443, encrypted=True, purpose="messages")
STORE = Server(name="store", host="store.example", port=443, encrypted=True, purpose="models")


def report(*findings: Finding) -> DoctorReport:
    return DoctorReport(participant="site-a", findings=findings, servers=(BROKER, STORE))


def test_the_first_thing_in_the_way_is_named() -> None:
    looked = report(
        good("files.keys"),
        warning("certificate", "ends_soon", "3 days left", "renew"),
        bad("broker.tcp", "no_answer", "no answer in 10 s", "see below", server=BROKER),
        bad("store.tcp", "no_answer", "no answer in 10 s", "see below", server=STORE),
    )
    assert not looked.ok
    assert looked.blocked is not None
    assert looked.blocked.check == "broker.tcp"
    assert looked.summary == "site-a: the first thing in the way is broker.tcp: no answer in 10 s"


def test_a_warning_is_in_nobodys_way() -> None:
    looked = report(good("files.keys"), warning("machine.shm", "little", "64 MiB", "more"))
    assert looked.ok
    assert looked.summary.endswith("nothing is in the way; 1 to look at")


def test_the_letter_names_every_connection_and_what_happened() -> None:
    letter = report(bad("broker.tls", "intercepted", "issued by CN=Box", "ask", server=BROKER)).letter
    for words in (
        "outgoing TCP to broker.example, port 443, AMQP 0-9-1 inside TLS 1.3: messages",
        "outgoing TCP to store.example, port 443, S3 (HTTP) inside TLS 1.3: models",
        "nothing has to be let",
        "broker.example port 443: issued by CN=Box",
    ):
        assert words in letter


@pytest.mark.parametrize("check", ["broker.login", "broker.certificate", "store.read", "files.keys"])
def test_the_firewall_team_is_left_alone_when_it_cannot_help(check: str) -> None:
    assert report(bad(check, "refused", "no", "ask", server=BROKER)).letter == ""


def test_what_may_be_sent_fits_into_an_answer_and_holds_no_words_of_this_machine() -> None:
    looked = report(
        bad("files.keys", "keys", "/data/secret/site.keys can be read by others", "chmod 600 /data/secret/site.keys"),
        warning("machine.disk", "little", "3 GiB", "make room", number=3 * 1024**3),
        bad("broker.proxy", "login", "proxy http://inner.hospital.example:3128 wants credentials", "x", server=BROKER),
    )
    answer = Reply(message=b"c" * 16, ok=looked.ok, reason="done", text="", values=looked.shareable())
    assert decode(Reply, encode(answer), 192 * 1024).values == looked.shareable()
    shared = json.dumps(looked.shareable())
    for private in ("/data", "site.keys can", "inner.hospital"):
        assert private not in shared
    assert "broker.example port 443" in shared


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [(0, Verdict.GOOD), (-90, Verdict.WARNING), (SKEW_S + 60, Verdict.BAD), (-SKEW_S - 60, Verdict.BAD)],
)
def test_a_clock_that_is_off_is_named(ahead: float, verdict: Verdict) -> None:
    found = check_clock(formatdate(1_800_000_000, usegmt=True), 1_800_000_000 + ahead)
    assert found.verdict == verdict
    assert found.number == ahead
    assert ("ahead of" in found.cause) is (ahead > 0)


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_a_store_that_tells_no_time_is_no_reason_to_complain(date: str) -> None:
    assert check_clock(date, 0.0).verdict == Verdict.SKIPPED


def test_the_hub_is_told_in_numbers_and_fixed_words_alone() -> None:
    told = sign_of(
        report(
            good("broker.rights"),
            warning("machine.disk", "little", "/data has 3 GiB", "make room"),
            bad("store.read", "keys", "/data/secret/credentials.toml", "ask", server=STORE),
            good("files.private"),
            bad("files.private", "readable", "/data/secret/site.keys", "chmod"),
        ),
        1_800_000_000.5,
    )
    assert (told.state, told.code) == ("examined", "store.read:keys")
    assert told.metrics == {
        "doctor.broker.rights": 1.0,
        "doctor.machine.disk": 0.5,
        "doctor.store.read": 0.0,
        "doctor.files.private": 0.0,
        "doctor.at": 1_800_000_000.0,
    }
    assert decode(Event, encode(told), 4096) == told
    assert sign_of(report(good("broker.rights")), 0.0).code == "-"


def test_a_site_tells_the_hub_beside_its_worker(kits: Kits, tmp_path: Path) -> None:
    network = MemoryTransport.named("memory:doctors")
    network.declare(topology(["site-a", "site-b"], ["ada"]))
    kit = kits.make("site-a", tmp_path / "site-a", broker="memory:doctors", store="s3s://store.example/fl0")
    looked = report(bad("store.tcp", "refused", "refused by 10.0.0.1", "ask", server=STORE))
    assert tell_hub(read_kit(kit), looked) == (
        True,
        "sent to the hub: the checks' names and how they went, no words of this machine",
    )
    came: Queue[Delivery] = Queue()
    subscription = network.consume(event_queue("site-a"), came.put)
    delivery = came.get(timeout=10)
    intake = Intake("fl", kits.identities["aggregator"], kits.registry)
    event, sign = intake.live("site-a", delivery, delivery.body)
    delivery.ack()
    subscription.cancel()
    network.close()
    assert isinstance(event, SiteSeen)
    assert not event.alive
    assert sign is not None
    assert (sign.event.state, sign.event.code) == ("examined", "store.tcp:refused")


def test_who_cannot_tell_the_hub_is_told_why(kits: Kits, kit: Path, tmp_path: Path) -> None:
    looked = report(good("broker.vhost"))
    ada = kits.make("ada", tmp_path / "ada", broker="amqps://broker.example/fl", store="")
    assert tell_hub(read_kit(ada), looked)[1].startswith("not sent to the hub: operators have no queue for it")
    hub = kits.make("aggregator", tmp_path / "hub", broker="amqps://broker.example/fl", store="memory:")
    assert tell_hub(read_kit(hub), looked) == (False, "")
    sent, why = tell_hub(read_kit(kit), report(bad("broker.login", "refused", "no", "ask", server=BROKER)))
    assert (sent, "the broker does not let us in" in why) == (False, True)
    (kit / "registry.bin").unlink()
    assert "registry.bin" in tell_hub(read_kit(kit), looked)[1]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits(tmp_path_factory.mktemp("kits"))


@pytest.fixture
def kit(kits: Kits, tmp_path: Path) -> Path:
    made = kits.make("site-a", tmp_path / "site-a", broker="amqps://broker.example/fl", store="s3s://store.example/fl0")
    kits.credentials(made, "key", "secret")
    return made


def test_good_files_are_called_good(kit: Path) -> None:
    place = read_kit(kit)
    keys, identity = check_keys(place)
    registered, registry = check_registry(place, identity)
    assert [keys.code, registered.code] == ["ok", "ok"]
    assert keys.cause == "keys of site site-a"
    assert registry is not None
    assert [finding.code for finding in check_private(place)] == ["ok"]


@pytest.mark.parametrize(
    ("filters", "policy", "said"),
    [
        ('[{name = "clip", norm = 1.0}]', "", ""),
        ('[{name = "clip", norms = 1.0}]', "", "norms"),
        ('[{name = "clips"}]', "", "clips"),
        ("[]", "", "no privacy filter is configured"),
        ('[{name = "unsafe-none"}]', '[[filters]]\nname = "clip"\nnorm = { at_most = 2.0 }\n', "policy.toml demands"),
    ],
)
def test_privacy_filters_are_made_as_the_worker_makes_them(kit: Path, filters: str, policy: str, said: str) -> None:
    config = (kit / "worker.toml").read_text()
    (kit / "worker.toml").write_text(config.replace('[{ name = "unsafe-none" }]', filters))
    (kit / "policy.toml").write_text(policy)
    [found] = check_filters(read_kit(kit))
    assert found.verdict == (Verdict.BAD if said else Verdict.GOOD)
    assert said in found.cause


def test_the_doctor_is_red_wherever_the_healthcheck_is(kit: Path, kits: Kits, tmp_path: Path) -> None:
    hub = kits.make("aggregator", tmp_path / "hub", broker="amqps://broker.example/fl", store="s3s://store.example/fl0")
    for place, folder in ((read_kit(kit), kit), (read_kit(hub), hub)):
        (folder / "state").mkdir()
        health = Health(folder / "state" / "health.json", HUB_LONGEST_S)

        def said(place: Place = place, folder: Path = folder) -> Verdict | None:
            asked = site_health(folder) if place.role == Role.SITE else hub_health(folder / "aggregator.toml")
            for found in check_service(place, time.time()):
                assert (found.verdict != Verdict.BAD) == asked.green
                assert asked.green or asked.text == found.cause
                assert found.verdict != Verdict.WARNING or "the last training failed" in found.cause
                return found.verdict
            return None

        assert said() is None  # nobody has ever started it
        health.begin()
        assert said() == Verdict.BAD
        health.accepted()
        assert said() == Verdict.GOOD
        health.store(time.time() - 60)
        assert said() == Verdict.BAD
        health.store(None)
        health.let_in(False)
        assert said() == Verdict.BAD
        health.let_in(True)
        assert said() == Verdict.GOOD
        health.stuck("the last training failed")
        assert said() == Verdict.WARNING
        health.stuck("")
        health.ended()
        assert said() is None


def test_the_aggregator_is_called_so_once(kits: Kits, tmp_path: Path) -> None:
    hub = kits.make("aggregator", tmp_path / "hub", broker="amqps://broker.example/fl", store="s3s://store.example/fl0")
    assert check_keys(read_kit(hub))[0].cause == "keys of aggregator"


def test_a_certificates_key_that_others_can_read_is_not_used(kit: Path) -> None:
    (kit / "tls/client.key").chmod(0o644)
    refused = pytest.raises(ConfigError, match=r"client\.key can be read by others.*chmod 600")
    with refused, broker_of(read_kit(kit).config, kit, "site-a"):
        pass


def test_files_that_others_can_read_are_named(kit: Path) -> None:
    for name, check in (
        ("site.keys", check_keys),
        ("credentials.toml", check_private),
        ("tls/client.key", check_private),
    ):
        (kit / name).chmod(0o644)
        found = [check_keys(read_kit(kit))[0]] if check is check_keys else list(check_private(read_kit(kit)))
        assert any(f"chmod 600 {kit / name}" in finding.cause + finding.advice for finding in found), name
        (kit / name).chmod(0o600)


def test_keys_of_somebody_else_are_named(kit: Path, kits: Kits) -> None:
    (kit / "site.keys").write_bytes(kits.identities["ada"].to_bytes())
    assert check_keys(read_kit(kit))[0].code == "role"


def test_who_is_not_in_the_registry_or_revoked_is_told(kit: Path, kits: Kits) -> None:
    place, identity = read_kit(kit), kits.identities["site-a"]
    without = Registry(version=1, entries=())
    for registry, code in ((kits.registry.revoke("site-a"), "revoked"), (without, "not_a_member")):
        (kit / "registry.bin").write_bytes(sign_registry(registry, kits.root, "fl", b"m" * 16))
        assert check_registry(place, identity)[0].code == code
    (kit / "registry.bin").write_bytes(sign_registry(kits.registry, identity, "fl", b"m" * 16))
    assert check_registry(place, identity)[0].code == "registry"


def test_a_registry_of_a_newer_fledge_is_no_reason_to_ask_for_another(kit: Path, kits: Kits) -> None:
    newer = msgpack.unpackb(encode(kits.registry)) | {"cipher": "rot13"}
    number = kits.registry.version
    raw = seal(
        kits.root,
        Kind.REGISTRY,
        msgpack.packb(newer),
        (),
        federation="fl",
        message_id=bytes(16),
        sequence=number,
    )
    (kit / "registry.bin").write_bytes(raw)
    found, registry = check_registry(read_kit(kit), kits.identities["site-a"])
    assert (found.verdict, found.code, registry) == (Verdict.BAD, "upgrade_needed", None)
    assert "encrypts with 'rot13'" in found.cause
    assert found.advice == "install a newer fledge on this machine"


def test_a_cipher_that_is_slow_on_this_machine_is_something_to_look_at(kits: Kits) -> None:
    faster = kits.registry.with_cipher(Suite.AEGIS256)
    slow = check_cipher(faster, lambda: False)
    assert (slow.verdict, slow.code) == (Verdict.WARNING, "slow")
    assert "no AES instructions: it encrypts and decrypts about 40 times slower than with xchacha20" in slow.cause
    assert "`cipher: xchacha20` in project.yml" in slow.advice
    for registry, aes, told in (
        (
            faster,
            True,
            f"aegis256, as version {faster.version} of .* says; the processor has .* for it",
        ),
        (kits.registry, True, "xchacha20, .* says; fast on any processor, and .* aegis256 would be faster"),
        (kits.registry, False, f"xchacha20, as version {kits.registry.version} of .* says; fast on any processor"),
    ):
        found = check_cipher(registry, lambda aes=aes: aes)
        assert found.verdict == Verdict.GOOD
        assert re.fullmatch(told, found.cause)


@pytest.mark.parametrize("name", ["site-a", "aggregator"])
def test_the_cipher_is_that_of_the_newest_registry_which_the_service_has_heard_of(
    kits: Kits, tmp_path: Path, name: str
) -> None:
    kit = kits.make(name, tmp_path / name, broker="memory:", store="memory:")

    def told() -> str:
        report = examine(read_kit(kit), {}, machine=False)
        (found,) = (finding for finding in report.findings if finding.check == "machine.cipher")
        return found.cause

    newer = kits.registry.with_cipher(Suite.AEGIS256)
    record = sign_registry(newer, kits.root, "fl", bytes(16))
    assert told().startswith("xchacha20")
    if name == "site-a":
        with closing(WorkerJournal(kit / "state" / "worker.db", name)) as journal:
            journal.commit([NoteRegistry(version=newer.version, digest=bytes(32), record=record)])
    else:
        with closing(HubJournal(kit / "state" / "aggregator.db", lambda _: b"")) as hub:
            hub.store_registry(newer.version, record)
    assert newest_registry(read_kit(kit)) == newer
    assert "aegis256" in told()
    assert not told().startswith("xchacha20")
    for database in (kit / "state").glob("*.db"):
        database.write_bytes(b"nonsense" * 1000)
    assert told().startswith("xchacha20")  # what the kit says is better than nothing


def files(kit: Path) -> Tls:
    return Tls(ca=str(kit / "tls/ca.pem"), cert=str(kit / "tls/client.pem"), key=str(kit / "tls/client.key"))


def test_a_certificate_is_looked_at_before_it_is_shown(kit: Path, kits: Kits) -> None:
    now = datetime.now(UTC)

    def code(name: str = "site-a", days: int = 0) -> str:
        return check_certificate(files(kit), name, now + timedelta(days=days)).code

    assert [code(), code("site-b"), code(days=80), code(days=91), code(days=-2)] == [
        "ok",
        "other_name",
        "ends_soon",
        "expired",
        "not_yet",
    ]
    (kit / "tls/client.key").write_bytes((kits.tls / "site-b.key").read_bytes())
    assert code() == "other_key"
    (kit / "tls/client.pem").write_bytes(b"nonsense")
    assert code() == "unreadable"


def test_a_folder_that_is_no_kit_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"worker\.toml.*is it an unpacked kit"):
        read_kit(tmp_path)


def test_little_room_is_a_warning_and_none_a_failure(kit: Path) -> None:
    place = read_kit(kit)
    gib = 1024**3
    verdicts = [check_disk(place, lambda _, left=left: left * gib).verdict for left in (100, 5, 0)]
    assert verdicts == [Verdict.GOOD, Verdict.WARNING, Verdict.BAD]
    assert check_memory(lambda: gib).verdict == Verdict.WARNING
    assert check_memory(lambda: 8 * gib).verdict == Verdict.GOOD


@pytest.mark.parametrize(
    ("role", "name"), [(Role.SITE, "north"), (Role.OPERATOR, "op"), (Role.AGGREGATOR, "aggregator")]
)
def test_nothing_is_both_needed_and_forbidden(role: Role, name: str) -> None:
    whole = topology(["north", "south"], ["op"])
    mine = own(role, name, whole)
    tried = {attempt.operation.what for attempt in forbidden(mine, whole) if attempt.code in ("read", "publish")}
    for queue in whole.queues:
        assert (f"read queue {queue.name}" in tried) is (queue.name not in mine.reads)
    for exchange in whole.exchanges:
        assert any(what.startswith(f"publish to exchange {exchange.name}") for what in tried) is (
            exchange.name not in mine.writes
        )
    assert {attempt.operation.what for attempt in needed(mine)} >= {f"queue {queue}" for queue in mine.reads}


TARGETS = Targets(place="fl0", federation="fl", site="site-a", other="site-b")


class Answers(BaseHTTPRequestHandler):
    """A store that answers every request as its server was told."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.server.says(self.command, dict(self.headers))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_PUT = do_DELETE = do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def store(says: object) -> Iterator[tuple[BoundedPool, S3Url, S3Blobs]]:
    """A store on this machine; `says(method, headers)` is its status and body."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.says = says
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = parse_s3_url(f"s3://key:secret@127.0.0.1:{server.server_port}/fl0?deadline=2", environ={})
    pool, blobs = BoundedPool(), S3Blobs(url)
    try:
        yield pool, url, blobs
    finally:
        pool.clear()
        blobs.close()
        server.shutdown()
        server.server_close()
        thread.join(10)


def refuse(_: str, __: dict[str, str]) -> tuple[int, bytes]:
    return 403, b"<Error><Code>AccessDenied</Code></Error>"


def outcomes(attacks: Iterator[Attack]) -> set[AttackOutcome]:
    return {attack.outcome for attack in attacks}


def test_a_store_that_refuses_everything_passes() -> None:
    with store(refuse) as (pool, url, blobs):
        assert outcomes(without_signature(pool, url, "site-a")) == {AttackOutcome.REFUSED}
        assert outcomes(with_credentials(blobs, "site-a", "site-b", "fl")) == {AttackOutcome.REFUSED}
        assert outcomes(copies(pool, blobs, TARGETS)) == {AttackOutcome.REFUSED}
        assert outcomes(own_copies(pool, blobs, TARGETS)) == {AttackOutcome.REFUSED}


def test_a_store_that_says_there_is_no_such_object_let_us_ask() -> None:
    with store(lambda *_: (404, b"<Error><Code>NoSuchKey</Code></Error>")) as (pool, url, _):
        assert outcomes(without_signature(pool, url, "site-a")) == {AttackOutcome.WORKED}


def test_a_store_that_copies_for_a_header_nobody_signed_is_found_out() -> None:
    def copies_along(method: str, headers: dict[str, str]) -> tuple[int, bytes]:
        source = {name.lower(): value for name, value in headers.items()}.get("x-amz-copy-source")
        if method == "PUT" and source and not source.endswith("heads/fl"):
            return 404, b"<Error><Code>NoSuchKey</Code></Error>"
        return 200, b"<CopyObjectResult/>" if source else b""

    with store(copies_along) as (pool, _, blobs):
        assert outcomes(copies(pool, blobs, TARGETS)) == {AttackOutcome.WORKED}
        assert outcomes(own_copies(pool, blobs, TARGETS)) == {AttackOutcome.WORKED}


def test_a_store_that_ignores_the_header_copies_nothing() -> None:
    with store(lambda *_: (200, b"")) as (pool, _, blobs):
        assert outcomes(copies(pool, blobs, TARGETS)) == {AttackOutcome.REFUSED}


def test_an_answer_that_says_nothing_is_not_taken_for_a_refusal() -> None:
    with store(lambda *_: (503, b"")) as (pool, url, _):
        assert outcomes(without_signature(pool, url, "site-a")) == {AttackOutcome.UNCLEAR}
