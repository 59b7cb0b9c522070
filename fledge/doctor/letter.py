"""What to send to whoever looks after firewall and proxy of a hospital. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fledge.doctor.findings import Finding, Server, Verdict

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
