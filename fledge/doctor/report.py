"""What the doctor found, in order: for people, as JSON, and as what may leave the hospital. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from fledge.doctor.findings import Finding, Server, Verdict
from protocol.codec import Plain


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """All findings, in the order in which things have to work."""

    participant: str
    findings: tuple[Finding, ...]
    servers: tuple[Server, ...] = ()
    """Everything this participant has to reach."""

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return self.blocked is None

    @property
    def blocked(self) -> Finding | None:
        """The first thing that failed: what comes later may fail because of it."""
        return next((finding for finding in self.findings if finding.verdict == Verdict.BAD), None)

    @property
    def letter(self) -> str:
        """The paragraph for the firewall's administrator; empty unless a connection is blocked on the way."""
        blocked = [finding for finding in self.findings if on_the_way(finding)]
        return firewall_letter(self.servers, blocked) if blocked else ""

    def lines(self) -> list[str]:
        """One line for each check, and what to do about those that are not good."""
        marks = {Verdict.GOOD: "ok  ", Verdict.WARNING: "look", Verdict.BAD: "BAD ", Verdict.SKIPPED: "-   "}
        made = []
        for finding in self.findings:
            made.append(f"{marks[finding.verdict]} {finding.check:<20} {finding.cause}".rstrip())
            if finding.advice:
                made.append(f"     {'':<20} -> {finding.advice}")
        return made

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        blocked = self.blocked
        if blocked is not None:
            return f"{self.participant}: the first thing in the way is {blocked.check}: {blocked.cause}"
        looks = sum(finding.verdict == Verdict.WARNING for finding in self.findings)
        return f"{self.participant}: nothing is in the way" + (f"; {looks} to look at" if looks else "")

    def document(self) -> dict[str, object]:
        """The whole report for `--json`: for this machine's own people, it holds paths."""
        return {
            "participant": self.participant,
            "ok": self.ok,
            "blocked": None if self.blocked is None else self.blocked.check,
            "findings": [
                {**asdict(each), "server": None if each.server is None else str(each.server)} for each in self.findings
            ],
            "letter": self.letter,
        }

    def shareable(self) -> dict[str, tuple[Plain, ...]]:
        """The columns of a table that may leave the hospital: fixed words, numbers, the federation's own servers."""
        return {
            "check": self._column(lambda finding: finding.check),
            "verdict": self._column(lambda finding: finding.verdict.value),
            "code": self._column(lambda finding: finding.code),
            "number": self._column(lambda finding: None if finding.number is None else float(finding.number)),
            "server": self._column(lambda finding: "" if finding.server is None else str(finding.server)),
        }

    def _column(self, value: Callable[[Finding], Plain]) -> tuple[Plain, ...]:
        return tuple(map(value, self.findings))


_HOPS = ("dns", "proxy", "tcp", "tls")


def on_the_way(finding: Finding) -> bool:
    """Whether something between here and the server is what failed."""
    return finding.verdict == Verdict.BAD and finding.server is not None and finding.check.endswith(_HOPS)


def firewall_letter(servers: Sequence[Server], blocked: Sequence[Finding]) -> str:
    """The paragraph: what has to be let out, why, and what happens now."""
    return "\n".join(
        [
            "Please allow this machine the following connections. All of them go out from here: nothing has to be let",
            "in, and no port of ours has to be opened.",
            *(f"  - outgoing TCP to {server.host}, port {server.port}, {_how(server)}" for server in servers),
            "Both ends prove who they are by certificates of the federation's own authority. Please exempt these",
            "connections from TLS inspection: behind it neither end accepts the other, and what passes is encrypted",
            "once more in any case. They stay open for days; please do not cut idle ones within a minute.",
            "What happens now when we try:",
            *(f"  - {finding.server}: {finding.cause}" for finding in blocked),
        ]
    )


def _how(server: Server) -> str:
    protocol = {"broker": "AMQP 0-9-1", "store": "S3 (HTTP)"}.get(server.name, "TCP")
    return f"{protocol} {'inside TLS 1.3' if server.encrypted else 'without TLS'}: {server.purpose}"
