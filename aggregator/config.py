"""Configuration of the centre: `aggregator.toml` (who and where) and `run.toml` (what to train and how)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from aggregator.strategy.stopping import Stopping
from broker.runtime.settings import TlsConfig, parse_toml
from protocol import limits
from protocol.codec import Parameters, Word
from protocol.errors import ConfigError
from protocol.metrics import Direction, direction_of

Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_MANY = 2**31
DEFAULT_VERSIONS = 200
"""After so many versions a run ends whose settings name no end."""
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
    """The run ends by the first of these; a run that begins without any ends after `DEFAULT_VERSIONS`.

    `metric` is also what versions are compared by; without it, the one that sites report and whose name says that it is
    a merit, or else an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: Word | None = None
    direction: Direction | None = None
    """Whether more or less of the metric is better; None: as its name says."""
    target_metric: Annotated[float, Field(allow_inf_nan=False)] | None = None
    patience: Annotated[int, Field(ge=1, le=_MANY)] | None = None
    max_versions: Annotated[int, Field(ge=0, le=_MANY)] | None = None
    """0: it does not end by itself, unless another of these says so."""
    max_wall_time: Seconds | None = None

    @model_validator(mode="after")
    def _directed(self) -> Self:
        if self.metric is not None and self.direction is None and direction_of(self.metric) is None:
            raise ValueError(
                f'whether more or less of "{self.metric}" is better cannot be told from its name; write '
                'direction = "max" (more is better) or direction = "min" (less is better) under [stop]'
            )
        return self

    @property
    def named(self) -> bool:
        """Whether an end is named, or that there is none."""
        ends = (self.target_metric, self.patience, self.max_versions, self.max_wall_time)
        return any(each is not None for each in ends)

    def rules(self) -> Stopping:
        """The same as the rules take it."""
        return Stopping(
            metric=self.metric,
            direction=self.direction or direction_of(self.metric or "") or "max",
            target=self.target_metric,
            patience=self.patience,
            max_versions=self.max_versions or None,
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
    evaluate: bool = True
    """Sites with data to evaluate on measure each version on them, before they train from it and when the run ends."""
    task: Parameters = {}
    """Plain values for the trainer."""
    stop: StopConfig = StopConfig()


def ending(config: RunConfig) -> RunConfig:
    """A run's settings as it begins: one that names no end gets one."""
    if config.stop.named:
        return config
    return config.model_copy(update={"stop": config.stop.model_copy(update={"max_versions": DEFAULT_VERSIONS})})


def until(config: RunConfig, versions: int) -> RunConfig:
    """The same settings with another end: after so many versions, whatever else was to end it."""
    same = {"metric": config.stop.metric, "direction": config.stop.direction}
    return config.model_copy(update={"stop": StopConfig.model_validate({**same, "max_versions": versions})})


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
