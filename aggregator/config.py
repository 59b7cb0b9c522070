"""Configuration of the centre: `aggregator.toml` (who and where) and `run.toml` (what to train and how)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from aggregator.strategy.stopping import Stopping
from broker.runtime.settings import TlsConfig, parse_toml
from protocol import limits
from protocol.codec import Parameters, Word
from protocol.errors import ConfigError

Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_MANY = 2**31
_LONGEST = 256 * 1024
_DIGEST = "64 hexadecimal digits"


class StrategyConfig(BaseModel):
    """A strategy by name; every other key is one of its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "fedbuff"

    @property
    def parameters(self) -> dict[str, object]:
        """The strategy's own parameters."""
        return dict(self.model_extra or {})


class StopConfig(BaseModel):
    """The run ends by the first of these; without any it runs until it is stopped."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: Word | None = None
    direction: Literal["max", "min"] = "max"
    target_metric: Annotated[float, Field(allow_inf_nan=False)] | None = None
    patience: Annotated[int, Field(ge=1, le=_MANY)] | None = None
    max_versions: Annotated[int, Field(ge=1, le=_MANY)] | None = None
    max_wall_time: Seconds | None = None

    def rules(self) -> Stopping:
        """The same as the rules take it."""
        return Stopping(
            metric=self.metric,
            direction=self.direction,
            target=self.target_metric,
            patience=self.patience,
            max_versions=self.max_versions,
            max_wall_time=self.max_wall_time,
        )


class RunConfig(BaseModel):
    """One run, as in `run.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Word
    strategy: StrategyConfig = StrategyConfig()
    min_sites: Annotated[int, Field(ge=1, le=limits.RECIPIENTS)] = 1
    max_wait: Seconds | None = None
    """Seconds until a half-filled buffer is merged; default: max(60, twice the median training time)."""
    grace: Seconds = 60.0
    """Seconds a synchronous version waits for stragglers once `min_sites` have reported."""
    heartbeat: Seconds = 20.0
    """A site that is silent for three of these no longer counts as live."""
    release_decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Decay of the released average over versions; 0 releases the raw version."""
    evaluate: bool = False
    """Sites evaluate each version on their own data before training from it."""
    task: Parameters = {}
    """Plain values for the trainer."""
    stop: StopConfig = StopConfig()


def kept(config: RunConfig) -> str:
    """A run's settings as the journal keeps them.

    Raises:
        ConfigError: they hold what cannot be kept, such as a date or tables within tables within tables.
    """
    try:
        text = config.model_dump_json()
        same = len(text) <= _LONGEST and RunConfig.model_validate_json(text) == config
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise ConfigError("run.toml: settings are texts, numbers, true, false, lists of them, and small tables")
    return text


class AggregatorConfig(BaseModel):
    """The aggregator's surroundings, as in `aggregator.toml`; paths are relative to the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    federation: Word
    broker: str
    store: str
    keys: Path = Path("aggregator.keys")
    registry: Path = Path("registry.bin")
    root: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=[_DIGEST])]
    """The federation root's verify key, in hex."""
    state: Path = Path("state")
    cache_mb: Annotated[int, Field(ge=0)] = 4096
    insecure: bool = False
    """Lets `amqp:` and `s3:` be used without TLS to other machines; for tests on a closed network only."""
    tls: TlsConfig | None = None
    proxy: str | None = None
    allow_strategy_code: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", examples=[_DIGEST])], ...] = ()
    """SHA-256 digests of the code of runs whose own strategies this hub executes, once somebody has looked at it."""

    def __repr__(self) -> str:
        return f"AggregatorConfig(federation={self.federation!r})"


def parse_run(raw: bytes) -> RunConfig:
    """A run's settings from the bytes of a `run.toml`.

    Raises:
        ConfigError: not TOML, or a value is wrong; says which.
    """
    return parse_toml(raw, "run.toml", RunConfig)
