"""Make a run: version 0, the model's specification, and `run.toml` with every setting visible."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType

from aggregator.config import DEFAULT_VERSIONS, RunConfig
from aggregator.pipeline.genesis import Genesis
from aggregator.pipeline.strategy_code import is_brought, strategy_in
from aggregator.strategy.base import Strategy
from aggregator.strategy.strategies import strategy
from broker.runtime.settings import read_toml
from fledge.runs.code_archive import CODE, archive, read_code
from protocol import limits
from protocol.errors import ConfigError, TooLarge, WireError
from protocol.spec import ModelSpec
from worker.config import call_factory
from worker.trainers.initial import spec_and_payload

RUN_TOML = "run.toml"
INITIAL = "initial.safetensors"
SPEC = "spec.bin"

_RUN = """\
# A run. Every key shows its value; what is commented out is off or follows from the rest.
name = {name}

# Seconds until a half-filled buffer is merged; by default max(60, twice the median training time).
{max_wait}# Seconds a synchronous version waits for stragglers once min_sites have reported.
grace = {grace}
min_sites = {min_sites}
# A site that is silent for three of these (seconds) no longer counts as live.
heartbeat = {heartbeat}
# What is released is an average over versions with this decay; 0 releases the raw version.
release_decay = {release_decay}
# Whether sites that have data to evaluate on measure each version, before they train from it and when the run ends.
evaluate = {evaluate}

# fedbuff (asynchronous), fedasync, fedavg (synchronous) or fedadam; other keys are its parameters.
[strategy]
{strategy}
# Plain values for the sites' trainers; all know lr, local_steps and batch_size. A list `classes` names those of the
# data in the order of their numbers; a site whose prepared data number them otherwise does not train.
[task]
{task}
# The run ends by the first of these; if none is given, after {versions} versions. max_versions 0: not by itself.
# Versions are compared by `metric`; without it, by one that sites report and whose name tells which way is better.
[stop]
{stop}"""


def init_run(
    factory: str,
    directory: Path,
    *,
    name: str,
    options: Mapping[str, object] | None = None,
    settings: RunConfig | None = None,
    code: Path | None = None,
) -> ModelSpec:
    """Ask a trainer for its initial model and write a run's directory.

    Args:
        factory: `module:factory` as in `worker.toml`; the module is looked for in `code`, or else in the current
            directory first.
        options: arguments of the factory.
        settings: what differs from the defaults; its name is replaced by `name`.
        code: a folder of training code to be copied into the run, so that it travels with it.

    Raises:
        ConfigError: the directory is in use, or the factory cannot be used here.
    """
    config = configured(name, settings)
    files = {} if code is None else read_code(code)
    return write_run(directory, config, call_factory(factory, options or {}, code or Path.cwd()), files)


def configured(name: str, settings: RunConfig | None = None) -> RunConfig:
    """The settings of a run of this name; a strategy in the run's code is looked at when the run is written.

    Raises:
        ConfigError: there is no such strategy, or it does not take its parameters.
    """
    config = RunConfig.model_validate({**(settings.model_dump() if settings else {}), "name": name})
    if not is_brought(config.strategy.name):
        strategy(config.strategy.name, **config.strategy.parameters)
    return config


def _strategy(config: RunConfig, files: Mapping[str, bytes]) -> Strategy:
    """The run's strategy; if it is in the run's code, this executes it, which is for whoever makes the run."""
    name, parameters = config.strategy.name, config.strategy.parameters
    if is_brought(name) and not files:
        raise ConfigError(f"strategy {name!r} names a class in the run's code; give its folder with --code")
    return strategy_in(archive(files), name, parameters) if is_brought(name) else strategy(name, **parameters)


def write_run(directory: Path, config: RunConfig, source: object, files: Mapping[str, bytes]) -> ModelSpec:
    """Write a run's directory; `source` is what `spec_and_payload` takes, `files` are the run's code by name.

    Raises:
        ConfigError: the directory is in use or cannot be written, `source` is no model, or the strategy in the run's
            code cannot be used.
    """
    text = render(config, files)
    spec, payload = spec_and_payload(source)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty; a run is never overwritten, name a new directory")
        with (directory / INITIAL).open("wb") as file:
            for record in payload:
                file.write(record)
        (directory / SPEC).write_bytes(spec.to_bytes())
        (directory / RUN_TOML).write_text(text, encoding="utf-8")
        for file_name, data in files.items():
            path = directory / CODE / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror or error}; name a directory that can be written") from error
    return spec


def load_run(directory: Path) -> RunConfig:
    """Read a run's settings.

    Raises:
        ConfigError: there are none, or they are wrong.
    """
    return read_toml(directory / RUN_TOML, RunConfig)


def load_genesis(directory: Path) -> Genesis:
    """Version 0 as `init_run` wrote it; its payload is read anew by each iteration.

    Raises:
        ConfigError: a file is missing or does not fit the other.
    """
    path = directory / INITIAL
    try:
        spec = ModelSpec.from_bytes((directory / SPEC).read_bytes())
        with path.open("rb") as file:
            header, size = file.read(len(spec.header)), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; make the run with `fledge init-run`") from error
    except (WireError, TooLarge) as error:
        raise ConfigError(f"{directory / SPEC} is damaged ({error}); make the run again") from error
    if header != spec.header or size != spec.model_length:
        raise ConfigError(f"{path} is not the model that {SPEC} describes; make the run again with `fledge init-run`")
    return Genesis(spec, lambda: _records(path))


def _records(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while record := file.read(limits.RECORD):
            yield record


def render(config: RunConfig, files: Mapping[str, bytes] = MappingProxyType({})) -> str:
    """`run.toml` for these settings and the run's code, commented, with every default visible."""
    values = config.model_dump()
    chosen = _strategy(config, files)
    stops = [("metric", '"accuracy"'), ("direction", '"max"'), ("target_metric", "0.95"), ("patience", "20")]
    stops += [("max_versions", str(DEFAULT_VERSIONS)), ("max_wall_time", "86400.0")]
    set_here = config.stop.model_dump(exclude_defaults=True)
    return _RUN.format(
        **{key: _toml(values[key]) for key in ("name", "grace", "min_sites", "heartbeat", "release_decay", "evaluate")},
        max_wait=_line("max_wait", config.max_wait, "60.0"),
        strategy=_line("name", chosen.name) + _parameters(chosen, config.strategy.parameters),
        task="".join(_line(key, value) for key, value in config.task.items()),
        versions=DEFAULT_VERSIONS,
        stop="".join(_line(key, set_here.get(key), example) for key, example in stops),
    )


def _line(key: str, value: object, example: str = "") -> str:
    return f"# {key} = {example}\n" if value is None else f"{key} = {_toml(value)}\n"


def _parameters(chosen: Strategy, given: Mapping[str, object]) -> str:
    """What was given, then the defaults of a built-in strategy as comments."""
    lines = [_line(key, value) for key, value in given.items()]
    names: list[str] = [each.name for each in fields(chosen)] if is_dataclass(chosen) else []
    for name in names:
        value = getattr(chosen, name)
        if name in given:
            continue
        if value is None:
            lines.append(f"# {name} follows from the number of live sites\n")
        elif is_dataclass(value) and not isinstance(value, type):
            lines.append(f"# {name} = {_toml({'name': type(value).__name__.lower(), **asdict(value)})}\n")
        else:
            lines.append(f"# {name} = {_toml(value)}\n")
    return "".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's spelling of plain values is TOML's too.
    return json.dumps(value, ensure_ascii=False)
