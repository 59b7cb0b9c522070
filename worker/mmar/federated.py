"""Clara's federated configuration as a run's settings and a site's.

Whatever has a meaning here is taken over; the rest is told of by name, with why it has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from protocol.errors import ConfigError
from worker.mmar.entries import ComponentRole, LeftOut, Note, NoteKind, Refused
from worker.mmar.names import TABLE

_MATCHES_NOTHING = ("dummy", ["dummy"])
_PLAIN = re.compile(r"[\w.]*(?:(?:\.\*|\\\.)[\w.]*)*")
_CONNECTION = "connections are described in aggregator.toml and worker.toml"
_LEFT = {
    "name": "a run has a name of its own",
    "max_num_clients": "the registry says who takes part",
    "num_server_workers": "the aggregator is one process",
    "validate_on_server": "the aggregator has no data; sites evaluate",
    "compression": "updates travel as they are",
    "retry_timeout": "workers try until they succeed",
    "my_rank": "one process trains at each site",
    "format_version": "it only says how the file is written",
    "start_round": "runs begin with version 0",
    **dict.fromkeys(("service", "ssl_private_key", "ssl_cert", "ssl_root_cert"), _CONNECTION),
    **dict.fromkeys(("model_log_dir", "ckpt_preload_path", "keep_round_model"), "every version is kept"),
    "cross_site_validation": "sites evaluate every version of the global model, and no site sees another's",
    "model": "the network is that of config_train.json",
}
_READ = frozenset(
    {
        *("min_num_clients", "wait_after_min_clients", "heart_beat_timeout", "num_rounds", "num_rounds_per_valid"),
        *("local_epochs", "steps_aggregation", "aggregation_epochs", "aggregation_iters"),
        *("cross_site_validate", "cross_validate"),
    }
)
"""What becomes a setting."""
_SECTIONS = frozenset({"", "servers", "client", "args"})
"""What holds settings and is no component, although it may have a name."""
_SILENCES = 3
_LARGEST = 10**9


@dataclass(frozen=True)
class Settings:
    """What Clara's configuration means here."""

    run: Mapping[str, object]
    """For `run.toml`."""
    exclude: tuple[str, ...]
    """For `worker.toml`: patterns of tensors that stay at the site."""
    notes: tuple[Note, ...]

    def worker_toml(self, run: str) -> str:
        """What a site adds to its worker.toml for a run of this name."""
        lines = [f"exclude = {json.dumps(list(self.exclude), ensure_ascii=False)}"] if self.exclude else []
        return "\n".join([*lines, f"[runs.{json.dumps(run)}.options]", 'dataset_dir = "/data"', ""])


def settings(server: Mapping[str, object] | None, client: Mapping[str, object] | None) -> Settings:
    """The settings in `config_fed_server.json` and `config_fed_client.json`, of Clara 3.1 or 4.0.

    Raises:
        ConfigError: a value is of another kind than it has to be.
    """
    reading = _Reading()
    run: dict[str, object] = {"strategy": {"name": "fedavg"}, "release_decay": 0.0}
    if server is not None:
        run |= reading.server(_merged(server, "config_fed_server.json"))
    task: dict[str, object] = {}
    if client is not None:
        told = _merged(client, "config_fed_client.json")
        task = reading.task(told)
        run |= {"evaluate": True} if reading.evaluates(told) else {}
    reading.told("server", server or {})
    reading.told("client", client or {})
    return Settings({**run, "task": task}, tuple(dict.fromkeys(reading.exclude)), tuple(dict.fromkeys(reading.notes)))


def _merged(config: Mapping[str, object], file: str) -> dict[str, object]:
    """One mapping of everything that says how to go on: the first server's, the client's, the trainer's arguments."""
    servers = config.get("servers") or [{}]
    client = config.get("client") or {}
    trainer = config.get("client_trainer") or {}
    if not (isinstance(servers, list) and isinstance(servers[0], dict) and isinstance(client, dict)):
        raise ConfigError(f"{file}: servers has to be a list of mappings, and client a mapping")
    args = trainer.get("args") if isinstance(trainer, dict) else None
    return {**config, **servers[0], **client, **(args if isinstance(args, dict) else {})}


class _Reading:
    """What is gathered on the way."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.exclude: list[str] = []

    def _note(self, kind: NoteKind, what: str, why: str) -> None:
        self.notes.append(Note(kind, what, why))

    def server(self, config: Mapping[str, object]) -> dict[str, object]:
        run: dict[str, object] = {}
        if (least := _whole(config, "min_num_clients")) is not None:
            run["min_sites"] = least
        if wait := _whole(config, "wait_after_min_clients"):
            run["grace"] = float(wait)
        if silence := _whole(config, "heart_beat_timeout"):
            run["heartbeat"] = silence / _SILENCES
        rounds, start = _whole(config, "num_rounds"), _whole(config, "start_round") or 0
        if rounds is not None and rounds > 0:
            # Clara counts rounds from 1, and begins with 0 where the model is new.
            run["stop"] = {"max_versions": max(1, rounds - max(start, 1) + 1)}
        elif rounds is not None:
            run["stop"] = {"max_versions": 0}
            self._note(NoteKind.LEFT_OUT, "num_rounds", "an endless run: it goes on until somebody stops it")
        if config.get("num_rounds_per_valid"):
            run["evaluate"] = True
        return run

    def task(self, config: Mapping[str, object]) -> dict[str, object]:
        steps = _whole(config, "steps_aggregation") or _whole(config, "aggregation_iters")
        epochs = _whole(config, "local_epochs") or _whole(config, "aggregation_epochs")
        if steps:
            return {"local_steps": steps}
        return {"local_epochs": epochs} if epochs else {}

    def evaluates(self, config: Mapping[str, object]) -> bool:
        return any(config.get(name) is True for name in ("cross_site_validate", "cross_validate"))

    def told(self, side: str, config: object, key: str = "", *, inside: bool = False) -> None:
        """Go through everything, and tell by name what means nothing here, or has to be set elsewhere.

        Args:
            inside: of a component, which is told of as a whole: of its arguments only those with a meaning count.
        """
        if key == "exclude_vars":
            self._excluded(side, config)
        elif key == "aggregation_weights":
            self._weights(side, config)
        elif key in _LEFT:
            self._note(NoteKind.LEFT_OUT, f"{side} {key}", _LEFT[key])
        elif isinstance(config, list):
            for each in config:
                self.told(side, each, key, inside=inside)
        elif isinstance(config, dict):
            called = "" if key in _SECTIONS else str(config.get("name") or config.get("path") or "")
            if called:
                self._component(side, called.rpartition(".")[2])
            for name, value in config.items():
                if not (called and name in ("name", "path", "disabled")):
                    self.told(side, value, name, inside=inside or bool(called))
        elif isinstance(config, str) and config in TABLE[ComponentRole.FEDERATED]:
            self._component(side, config)
        elif key not in _READ and not inside:
            self._note(NoteKind.LEFT_OUT, f"{side} {key}", "means nothing here")

    def _weights(self, side: str, weights: object) -> None:
        if isinstance(weights, dict) and any(weight != 1 for weight in weights.values()):
            told = json.dumps(weights)[:200]
            self._note(
                NoteKind.LEFT_OUT, f"{side} aggregation_weights", f"{told}: updates are weighed by their examples alone"
            )

    def _component(self, side: str, name: str) -> None:
        entry = TABLE[ComponentRole.FEDERATED].get(name)
        if isinstance(entry, LeftOut):
            self._note(NoteKind.LEFT_OUT, f"{side} {name}", entry.why)
        elif isinstance(entry, Refused):
            self._note(NoteKind.TO_SET, f"{side} {name}", f"has no equal here; {entry.advice}")
        else:
            why = "is unknown here; strategies and privacy filters of your own are Python packages (entry points)"
            self._note(NoteKind.TO_SET, f"{side} {name}", why)

    def _excluded(self, side: str, value: object) -> None:
        if not value or value in _MATCHES_NOTHING:
            return
        patterns = value if isinstance(value, list) else patterns_of(str(value))
        if patterns is None:
            why = f"{value!r} is too rich for patterns with `*`; write `exclude` in worker.toml by hand"
            self._note(NoteKind.TO_SET, f"{side} exclude_vars", why)
            return
        self.exclude += map(str, patterns)
        self._note(NoteKind.TO_SET, f"{side} exclude_vars", f"exclude = {list(patterns)} in every site's worker.toml")


def patterns_of(expression: str) -> list[str] | None:
    """Patterns with `*` that match what a regular expression finds; None if there are none."""
    found = []
    for part in expression.split("|"):
        inner = part.removeprefix("^").removesuffix("$")
        if not _PLAIN.fullmatch(inner):
            return None
        # A lone dot is any letter to a regular expression; in names of tensors it is meant as a dot.
        text = inner.replace("\\.", "\0").replace(".*", "*").replace("\0", ".")
        start, end = "" if part.startswith("^") else "*", "" if part.endswith("$") else "*"
        found.append(re.sub(r"\*+", "*", f"{start}{text}{end}"))
    return found


def _whole(config: Mapping[str, object], name: str) -> int | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST:
        raise ConfigError(f"{name} is {repr(value)[:60]}; it has to be a whole number of at most {_LARGEST:,}")
    return value
