"""Answers to operators' questions, read from the journal and the rules; every function only looks.

Values are plain. A table is one tuple for each column; ids and digests are shown by their first hexadecimal digits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlalchemy import func, select

from aggregator.domain.state import SiteStatus, UpdateState
from aggregator.journal.history import History, read_entry
from aggregator.journal.run_history import read_plan
from aggregator.journal.tables import evaluations as evaluations_table
from aggregator.journal.tables import ledger, letters, members, models, updates, versions
from aggregator.operators import run_metrics
from aggregator.operators.view import Arguments, Found, QueryContext, Values, base64_lines
from aggregator.strategy.plan import Member
from protocol import limits
from protocol.codec import Plain, decode
from protocol.commands import COMMANDS
from protocol.errors import ConfigError, Unauthorized
from protocol.keys import Role
from protocol.messages import CERTIFICATE_DAYS, DOCTOR, DOCTOR_AT, RESTART_NEEDED, Card, Evaluation, Event

MOST = 200
"""Rows of a table unless fewer are asked for."""
_ENTRY = 800
_REGISTRY = 128 * 1024
"""Bytes of a signed registry that an answer holds."""


def look_up(command: str, arguments: Arguments, view: QueryContext) -> Values:
    """The answer to a question.

    Raises:
        ConfigError: an argument is wrong, or there is no such thing.
        Unauthorized: the answer cannot be cut down to the sites that may be told of.
    """
    if view.only is not None and not COMMANDS[command].of_sites:
        raise Unauthorized(f"{command} is not answered about single sites; ask whoever signs the registry for a role")
    return _ANSWERS[command](view, arguments)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Plain]]) -> Values:
    rows = rows[: limits.PLAINS]
    return {name: tuple(row[index] for row in rows) for index, name in enumerate(columns)}


def _limit(arguments: Arguments) -> int:
    limit = arguments.get("limit") or MOST
    if not isinstance(limit, int) or not 1 <= limit <= limits.PLAINS:
        raise ConfigError(f"limit: a number from 1 to {limits.PLAINS}")
    return limit


def whole_number(arguments: Arguments, name: str, default: int | None = None) -> int:
    """A command's argument that has to be a whole number.

    Raises:
        ConfigError: it is missing, or none.
    """
    value = arguments.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ConfigError(f"{name}: a number is needed")
    return value


def _short(id: bytes) -> str:
    return id.hex()[:16]


def _status(view: QueryContext, arguments: Arguments) -> Values:
    pending = [state.value for state in UpdateState if not state.final]
    counted = select(updates.c.site, func.count().label("number")).group_by(updates.c.site)
    waiting = {row.site: row.number for row in view.rows(counted.where(updates.c.state.in_(pending)))}
    sites = sorted(p.name for p in view.registry.members(Role.SITE))
    rows = [_site_now(view, site, view.signs.get(site), waiting.get(site, 0)) for site in sites]
    columns: tuple[str, ...] = ("site", "seen", "doing", "run_of", "base", "progress", "staleness", "waiting", "held")
    scalars: Values = {"run": "-", "state": "-", "version": -1}
    if view.runs():
        run = view.run(arguments)
        scalars = {"run": run.name, "state": run.state.value, "version": run.version}
        scalars |= {"reason": run.reason} if run.reason != "ok" else {}
        scalars |= run_metrics.outcome(run) if view.only is None else {}
        found = run_metrics.of_sites(run, view.rows, sites)
        rows = [(*row[:-1], *found[site], row[-1]) for row, site in zip(rows, sites, strict=True)]
        columns = (*columns, "certificate", "loss", "measured_here")
    else:
        columns = (*columns, "certificate")
    scalars |= {"registry": view.registry.version, "cipher": view.registry.cipher}
    return scalars | _table((*columns, "trouble"), rows)


def _site_now(view: QueryContext, site: str, sign: SiteStatus | None, waiting: int) -> tuple[Plain, ...]:
    if sign is None:
        return (site, -1.0, "never seen", "-", 0, 0.0, 0, waiting, view.rules.commands.held(site), -1.0, "")
    newest = view.rules.runs[sign.run].version if sign.run in view.rules.runs else sign.version
    return (
        site,
        round(view.seen.get(site, -1.0), 1),
        sign.event.state,
        sign.run,
        sign.version,
        sign.event.progress,
        max(0, newest - sign.version),
        waiting,
        view.rules.commands.held(site),
        sign.event.metrics.get(CERTIFICATE_DAYS, -1.0),
        _trouble(sign),
    )


def _trouble(sign: SiteStatus) -> str:
    case = f", case {sign.event.case}" if sign.event.case != "-" else ""
    failed = f"{sign.event.code}{case}" if sign.event.code != "-" else ""
    restart = "its configuration changed: restart it" if sign.event.metrics.get(RESTART_NEEDED) else ""
    return "; ".join(filter(None, (failed, restart)))


def _registry(view: QueryContext, arguments: Arguments) -> Values:
    record = view.history.registry_record()
    if record is None or len(record) > _REGISTRY:
        raise ConfigError(
            "the registry is too large for a message; fetch the newest registry.bin from whoever signs it"
        )
    return {"record": base64_lines(record)}


def _site_list(view: QueryContext, arguments: Arguments) -> Values:
    rows = [
        (entry.name, entry.role.value, entry.organisation, "ok" if entry.revoked is None else "revoked", entry.since)
        for entry in view.registry.entries
    ]
    return _table(("site", "role", "organisation", "held", "since"), rows)


def _site_show(view: QueryContext, arguments: Arguments) -> Values:
    site = view.site(arguments)
    of_site = view.updates().where(updates.c.site == site)
    rows = view.rows(of_site.order_by(updates.c.order.desc()).limit(_limit(arguments)))
    sign, seen = view.signs.get(site), round(view.seen.get(site, -1.0), 1)
    told: Values = {"site_name": site, "held": view.rules.commands.held(site), "seen": seen}
    if sign is not None:
        told |= {"doing": sign.event.state, "software": sign.event.software, "base_version": sign.version}
        told |= {} if sign.doctor is None else _examined(sign.doctor)
    columns = ("update", "base", "state", "reason", "version", "arrived", "settled")
    shown = [(_short(r.id), r.base_version, r.state, r.reason, r.version, r.arrived, r.settled) for r in rows]
    return told | _table(columns, shown)


def _examined(found: Event) -> Values:
    """What a site's doctor found last, and when by the site's clock."""
    worth = {name.removeprefix(DOCTOR): value for name, value in found.metrics.items() if name.startswith(DOCTOR)}
    bad = sorted(check for check, value in worth.items() if value == 0)
    at = min(max(0.0, found.metrics.get(DOCTOR_AT, 0.0)), 2.0**32)
    when = datetime.fromtimestamp(at, UTC).isoformat(timespec="minutes")
    return {"doctor": "ok" if found.code == "-" else found.code, "doctor_bad": ", ".join(bad)[:200], "doctor_at": when}


def _run_list(view: QueryContext, arguments: Arguments) -> Values:
    rows = [
        (run.name, run.state.value, run.reason, run.version, (run.rules.bundle or b"").hex())
        for run in list(view.rules.runs.values())[-_limit(arguments) :]
    ]
    return _table(("run", "state", "reason", "version", "code"), rows)


def _run_show(view: QueryContext, arguments: Arguments) -> Values:
    run = view.run(arguments)
    settings = view.serving[run.name].config
    config = settings.model_dump(exclude={"task", "strategy", "stop"})
    flat = {name: value for name, value in config.items() if value is not None}
    strategy = {"strategy." + name: value for name, value in settings.strategy.model_dump().items()}
    stop = {"stop." + name: value for name, value in settings.stop.model_dump().items() if value is not None}
    task = {"task." + name: value for name, value in settings.task.items()}
    state: Values = {"state": run.state.value, "reason": run.reason, "version": run.version}
    state |= run_metrics.outcome(run) if view.only is None else {}
    state |= {"code": run.rules.bundle.hex()} if run.rules.bundle else {}
    told = {**flat, **state, **strategy, **stop, **task}
    return {name[:64]: value for name, value in list(told.items())[:64] if not isinstance(value, dict)}


def _model_list(view: QueryContext, arguments: Arguments) -> Values:
    run = view.run(arguments)
    of_run = select(versions).where(versions.c.run == run.name)
    found = view.rows(of_run.order_by(versions.c.version.desc()).limit(_limit(arguments)))
    rows, values = [], run_metrics.by_version(run)
    for row in found:
        plan = read_plan(row.plan)
        merged = plan.members if plan else ()
        sites = ", ".join(sorted({member.site for member in merged}))[:200]
        stalest = max((member.staleness for member in merged), default=0)
        rows.append((row.version, _short(row.digest), len(merged), sites, stalest, values.get(row.version)))
    return {"run": run.name} | _table(("version", "digest", "members", "sites", "staleness", "measured"), rows)


def _model_show(view: QueryContext, arguments: Arguments) -> Values:
    run = view.run(arguments)
    number = whole_number(arguments, "version", run.version)
    found = view.rows(select(versions).where(versions.c.run == run.name, versions.c.version == number))
    if not found:
        raise ConfigError(f"run {run.name} has no version {number}; the newest is {run.version}")
    plan = read_plan(found[0].plan)
    rows = [(m.site, _short(m.id), m.staleness, m.weight, m.examples, m.norm) for m in (plan.members if plan else ())]
    columns = ("site", "update", "staleness", "weight", "examples", "norm")
    digest, chosen = found[0].digest.hex(), plan.strategy if plan else "-"
    return {"run": run.name, "number": number, "digest": digest, "strategy": chosen} | _table(columns, rows)


def _model_search(view: QueryContext, arguments: Arguments) -> Values:
    """Only the aggregator can read what cards say; it reads each one it shows."""
    rows: list[tuple[Plain, ...]] = []
    for row in view.rows(select(models).order_by(models.c.number.desc())):
        card = view.card(row.run, row.record)
        channels = [channel for channel, model in view.rules.catalogue.channels().items() if model == row.name]
        if card is None or not _is_wanted(card, channels, arguments):
            continue
        labels, application = ", ".join(card.labels)[:200], card.application[:200]
        place = (row.name, row.run, row.version, row.size)
        rows.append((*place, card.publisher, card.published, labels, ", ".join(channels)[:200], application))
        if len(rows) == _limit(arguments):
            break
    columns = ("name", "run", "version", "size", "publisher", "published", "labels", "channels", "application")
    return _table(columns, rows)


def _is_wanted(card: Card, channels: Sequence[str], arguments: Arguments) -> bool:
    text, label, channel = (str(arguments.get(name) or "").lower() for name in ("text", "label", "channel"))
    said = " ".join((card.name, card.application, card.description, card.framework, card.publisher)).lower()
    if label and label not in (each.lower() for each in card.labels):
        return False
    return text in said and (not channel or channel in (each.lower() for each in channels))


def _update_list(view: QueryContext, arguments: Arguments) -> Values:
    statement = view.updates().order_by(updates.c.order.desc()).limit(_limit(arguments))
    if arguments.get("run") is not None:
        statement = statement.where(updates.c.run == view.run(arguments).name)
    if arguments.get("site") is not None:
        statement = statement.where(updates.c.site == view.site(arguments))
    if arguments.get("state") is not None:
        statement = statement.where(updates.c.state == str(arguments["state"]))
    rows = [
        (_short(r.id), r.site, r.base_version, r.state, r.reason, r.version, r.norm, r.arrived, r.settled)
        for r in view.rows(statement)
    ]
    return _table(("update", "site", "base", "state", "reason", "version", "norm", "arrived", "settled"), rows)


def update_row(view: QueryContext, arguments: Arguments) -> Found:
    """The update whose first digits an argument gives.

    Raises:
        ConfigError: none or several begin with them.
    """
    wanted = str(arguments.get("update", ""))
    if len(wanted) < 4:
        raise ConfigError("update: at least four digits of its id are needed")
    text = func.lower(func.hex(updates.c.id))
    found = view.rows(view.updates().where(text.like(f"{_plain_hex(wanted)}%")).limit(2))
    if len(found) != 1:
        raise ConfigError(f"{wanted}: {'several updates begin' if found else 'no update begins'} with these digits")
    return found[0]


def as_member(view: QueryContext, row: Found) -> tuple[Member | None, bytes]:
    """How a merged update stands in its version, and that version's digest; nothing of one that is in none."""
    if row.state != UpdateState.MERGED:
        return None, b""
    wanted = select(versions.c.plan, versions.c.digest)
    found = view.rows(wanted.where(versions.c.run == row.run, versions.c.version == row.version))
    plan = read_plan(found[0].plan) if found else None
    mine = next((member for member in plan.members if member.id == row.id), None) if plan is not None else None
    return mine, found[0].digest if mine is not None else b""


def _update_show(view: QueryContext, arguments: Arguments) -> Values:
    row = update_row(view, arguments)
    member, _ = as_member(view, row)
    told: Values = {
        "update": row.id.hex(),
        "run": row.run,
        "site": row.site,
        "base": row.base_version,
        "state": row.state,
        "reason": row.reason,
        "version": row.version,
        "weight": None if member is None else member.weight,
        "examples": row.examples,
        "seconds": row.seconds,
        "norm": row.norm,
        "epoch": row.epoch,
        "sequence": row.sequence,
        "arrived": row.arrived,
        "settled": row.settled,
    }
    if view.only is None:  # a place among others tells how many there are
        position = view.rows(select(members.c.position).where(members.c.id == row.id))
        told["position"] = position[0].position if position else -1
    return told


def _plain_hex(text: str) -> str:
    if any(letter not in "0123456789abcdef" for letter in text.lower()):
        raise ConfigError("update: its id in hexadecimal digits")
    return text.lower()


def _metrics(view: QueryContext, arguments: Arguments) -> Values:
    since = whole_number(arguments, "since", 0)
    of_run = select(evaluations_table).where(evaluations_table.c.run == view.run(arguments).name)
    statement = of_run.where(evaluations_table.c.version >= since)
    rows: list[tuple[Plain, ...]] = []
    for row in view.rows(statement.order_by(evaluations_table.c.version.desc()).limit(_limit(arguments))):
        said = decode(Evaluation, row.body, limits.BODY)
        rows += [(row.version, row.site, name, value, said.examples) for name, value in sorted(said.metrics.items())]
    return _table(("version", "site", "metric", "value", "examples"), rows)


def _dead_list(view: QueryContext, arguments: Arguments) -> Values:
    size = func.length(letters.c.message).label("size")
    statement = select(letters.c.number, letters.c.queue, letters.c.reason, size, letters.c.at)
    rows = view.rows(statement.order_by(letters.c.number.desc()).limit(_limit(arguments)))
    found = [(row.number, row.queue, row.reason, row.size, row.at) for row in rows]
    return _table(("id", "queue", "reason", "bytes", "at"), found)


def _dead_show(view: QueryContext, arguments: Arguments) -> Values:
    row = letter(view.history, whole_number(arguments, "id"))
    return {"id": row.number, "queue": row.queue, "reason": row.reason, "bytes": len(row.message), "at": row.at}


def letter(history: History, number: int) -> Found:
    """One refused message.

    Raises:
        ConfigError: there is none of this number.
    """
    with history.engine.connect() as db:
        row = db.execute(select(letters).where(letters.c.number == number)).one_or_none()
    if row is None:
        raise ConfigError(f"there is no refused message {number}; `dead list` shows which there are")
    return row


def _queue_list(view: QueryContext, arguments: Arguments) -> Values:
    if view.depths is None:
        raise ConfigError("the aggregator was not told where the broker's management is; set FLEDGE_MANAGEMENT there")
    return _table(("queue", "ready", "consumers"), sorted(view.depths()))


def _audit_log(view: QueryContext, arguments: Arguments) -> Values:
    statement = select(ledger).where(ledger.c.number > whole_number(arguments, "since", 0))
    if (kind := arguments.get("kind")) is not None:
        statement = statement.where(ledger.c.kind == str(kind))
    statement = statement.order_by(ledger.c.number.desc()).limit(_limit(arguments))
    rows = [(r.number, *_shown(r.entry), r.kind, r.hash.hex()[:16]) for r in reversed(view.rows(statement))]
    columns = ("number", "at", "kind", "entry", "hash")
    return _table(columns, [(number, at, kind, entry, hash) for number, at, entry, kind, hash in rows])


def _shown(entry: bytes) -> tuple[float | None, str]:
    """When a ledger entry was noted, and what it says as JSON; bytes in hexadecimal digits."""
    at, said = read_entry(entry)
    text = json.dumps(said, default=lambda value: value.hex() if isinstance(value, bytes) else str(value))
    return at, text[:_ENTRY]


_ANSWERS: dict[str, Callable[[QueryContext, Arguments], Values]] = {
    "status": _status,
    "registry": _registry,
    "site.list": _site_list,
    "site.show": _site_show,
    "run.list": _run_list,
    "run.show": _run_show,
    "model.list": _model_list,
    "model.show": _model_show,
    "model.search": _model_search,
    "update.list": _update_list,
    "update.show": _update_show,
    "update.receipt": _update_show,
    "metrics": _metrics,
    "dead.list": _dead_list,
    "dead.show": _dead_show,
    "queue.list": _queue_list,
    "audit.log": _audit_log,
}
