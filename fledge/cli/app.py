"""The command line: thin, and every library beyond the command's own need is loaded inside the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fledge.cli import audit as audit_commands
from fledge.cli import bundle, data, deploy, health, infer, new, provision, receipt, site, trial
from fledge.cli.doctor import doctor
from fledge.cli.options import (
    AGGREGATOR_TOML,
    WORKER_TOML,
    ConfigFiles,
    HubConfig,
    HubKit,
    SiteConfig,
    SiteKit,
    config_in,
    named_value,
    server_url,
    the_run,
)
from fledge.ctl.app import app as ctl
from fledge.ctl.options import OldRun
from fledge.process.tracebacks import guard_tracebacks, show
from fledge.shell.command import shell
from protocol.errors import ConfigError, Fenced, FledgeError

app = typer.Typer(
    name="fledge",
    help="Asynchronous federated learning for hospitals over a message queue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(site.app)
site.app.command()(receipt.receipts)
site.app.command()(receipt.receipt)
app.add_typer(bundle.app)
app.add_typer(data.app)
app.add_typer(deploy.app)
app.add_typer(receipt.app)
app.add_typer(audit_commands.app)
app.command()(doctor)
app.command()(health.healthcheck)
app.command()(infer.infer)
provision.register(app)
trial.register(app)
app.command()(new.new)
ctl.command()(shell)
app.add_typer(ctl, name="ctl")

RunDirectory = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="A directory that `fledge init-run` made: a run to begin with.")
]

RESTART = 75
"""Exit code of a worker that wants to be started again (a temporary failure, to its supervisor)."""
LOGGING = "fledge.logging"
"""Where a command finds how logging was set up."""
TRAIN_EXTRA = ("torch", "monai", "sklearn", "safetensors", "nibabel", "PIL")
"""What an aggregator runs without."""


def main() -> None:
    """Run the command line; errors of ours become one line and an exit code: 2 configuration, 3 fenced, else 1."""
    guard_tracebacks()
    try:
        app()
    except (FledgeError, ModuleNotFoundError) as error:
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name in TRAIN_EXTRA:
            error = ConfigError(f"this needs {missing.name}; install it with: pip install 'fledge-fl[train]'")
        if not isinstance(error, FledgeError):
            show("", error)
            raise SystemExit(1) from None
        _complain(str(error))
        raise SystemExit(exit_code(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # a bug, or the site's own code; typer's hook would print it as it is
        show("", error)
        raise SystemExit(1) from None


def exit_code(error: FledgeError) -> int:
    """The process's exit code for an error that ended it."""
    if isinstance(error, Fenced):
        return 3
    return 2 if isinstance(error, ConfigError) else 1


def _complain(text: str) -> None:
    from broker.net.redact import redacted

    plain = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    line = f"fledge: {redacted(plain)}"
    typer.secho(line, fg=typer.colors.RED, err=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log details too.")] = False,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log JSON lines also on a terminal.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Asynchronous federated learning for hospitals over a message queue."""
    from fledge.process import log

    quiet = context.invoked_subcommand == "ctl"  # people ask and want the answer
    context.meta[LOGGING] = {"verbose": verbose, "quiet": quiet, "json_lines": True if json_logs else None}
    log.configure(**context.meta[LOGGING])


@app.command()
def version() -> None:
    """Show the version."""
    import fledge

    typer.echo(f"fledge {fledge.__version__}")


@app.command("new-federation")
def new_federation(
    directory: Annotated[Path, typer.Argument(help="A new directory for all files.")],
    site: Annotated[list[str], typer.Option("--site", help="A site's name; give it once for each.")],
    broker: Annotated[str, typer.Option(help="amqps://host:5671/vhost (or amqp:); with a login: FLEDGE_BROKER.")] = "",
    store: Annotated[
        str, typer.Option(help="s3s://host/bucket (or s3:, file:///directory); with a login: FLEDGE_STORE.")
    ] = "",
    name: Annotated[str, typer.Option(help="The federation's name; default: the directory's.")] = "",
    trainer: Annotated[str, typer.Option(help="The sites' training code, module:factory.")] = "mytask:trainer",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let plain amqp: and s3: go to other machines: closed networks only.")
    ] = False,
    cipher: Annotated[
        str, typer.Option(help="What members encrypt with: aegis256 or xchacha20; default: the faster one here.")
    ] = "",
) -> None:
    """Make keys, a signed registry and configuration files for an aggregator and its sites."""
    from broker.net.urls import scheme_of
    from fledge import federation

    name = name or directory.resolve().name
    broker = server_url(broker, "--broker", "FLEDGE_BROKER")
    store = server_url(store, "--store", "FLEDGE_STORE")
    suite = federation.new_federation(
        directory,
        name=name,
        sites=site,
        broker=broker,
        store=store,
        trainer=trainer,
        insecure=insecure,
        cipher=cipher,
    )
    typer.echo(f"{directory / federation.ROOT_KEYS}: the root of all trust; take it off this machine")
    typer.echo(f"{directory / federation.AGGREGATOR_TOML}: start with `fledge aggregator`")
    typer.echo(f"{directory / 'sites'}: one folder per site, to be handed over on a channel you trust")
    typer.echo(f"members encrypt with {suite.word}")
    if "memory" in (scheme_of(broker), scheme_of(store)):
        typer.echo(
            "note: nobody can meet at memory:, since processes do not share it: no worker finds the aggregator there;"
            " make it again with amqp://localhost/ and file:///directory, or try `fledge demo`",
            err=True,
        )


@app.command("init-run")
def init_run(
    out: Annotated[Path, typer.Option("-o", "--out", help="A new directory for the run.")],
    factory: Annotated[
        str, typer.Argument(help="Your training code, module:factory, as at the sites; with --code: trainer:trainer.")
    ] = "",
    code: Annotated[
        Path | None, typer.Option(help="A folder of training code that travels with the run to every site.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="A MONAI bundle (or Clara MMAR), which becomes the run: its network version 0, its files the code."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="With --bundle: weights for version 0, .safetensors or as torch saves them.")
    ] = None,
    name: Annotated[str, typer.Option(help="The run's name; default: the directory's.")] = "",
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the factory; may be given again.")] = None,
    config_file: ConfigFiles = None,
) -> None:
    """Make a run: its initial model (version 0), the model's specification, and run.toml with every default.

    A folder given by --code holds trainer.py with `def trainer(**options)`, which returns the trainer; its other files
    are imported from there as plain modules (`import network`). It is copied into the run, goes up with `fledge ctl run
    create`, and sites take it over with `fledge ctl run deploy`. Keep data and weights out of it: 16 MiB as a zip.

    A MONAI bundle given by --bundle needs no code of yours: each site names its dataset_dir in worker.toml.
    """
    from fledge.runs.code_archive import CODE, archive, read_code
    from fledge.runs.init_run import RUN_TOML
    from fledge.runs.init_run import init_run as make_run
    from worker.pipeline.code_loader import FACTORY

    if bundle is not None:
        from fledge.runs.from_bundle import Chosen, init_bundle_run

        if factory or code is not None or option:
            raise ConfigError("--bundle brings its own training code; leave out the factory, --code and --option")
        chosen = Chosen(weights=weights, config_file=config_file or ())
        spec = init_bundle_run(bundle, out, name=name or out.resolve().name, chosen=chosen, tell=typer.echo)
    elif not factory and code is None:
        raise ConfigError("name your training code as module:factory, its folder with --code, or a MONAI bundle's")
    elif weights is not None or config_file:
        raise ConfigError("--weights and --config-file go with --bundle; other trainers begin with what they make")
    else:
        options = dict(named_value(text, "--option") for text in option or ())
        spec = make_run(factory or FACTORY, out, name=name or out.resolve().name, options=options, code=code)
    size = spec.model_length / 1e6
    typer.echo(f"{out}: {len(spec.tensors)} tensors, {size:.3g} MB; look at {out / RUN_TOML}")
    if (out / CODE).exists():
        import hashlib

        typer.echo(f"code {hashlib.sha256(archive(read_code(out / CODE))).hexdigest()}")
        typer.echo(f"then `fledge ctl run create {out}`, `run deploy` (sites take the code over), `run start`")
    else:
        typer.echo(f"then `fledge ctl run create {out}`, or `fledge aggregator {out}` where the aggregator is")


@app.command()
def aggregator(
    run: RunDirectory = None, config: HubConfig = AGGREGATOR_TOML, kit: HubKit = None, old: OldRun = None
) -> None:
    """Serve a federation's runs: take updates, merge, announce versions. Exit code 3: another aggregator took over."""
    from fledge.bootstrap import open_aggregator
    from fledge.process.memory import keep_what_is_here
    from fledge.process.signals import stopped_by_signals

    first = None if run is None and old is None else Path(the_run(None if run is None else str(run), old))
    config = config_in(kit, config, AGGREGATOR_TOML)
    with open_aggregator(config, first) as service, stopped_by_signals(service.stop):
        service.start()
        keep_what_is_here()
        service.join()


@app.command()
def worker(
    context: typer.Context,
    config: SiteConfig = WORKER_TOML,
    kit: SiteKit = None,
) -> None:
    """Train at a site whenever there is something to train. Exit code 75: an operator ordered a restart."""
    from fledge.bootstrap import LOG, open_worker
    from fledge.process import log
    from fledge.process.memory import keep_what_is_here
    from fledge.process.signals import stopped_by_signals
    from worker.config import read_config

    path = config_in(kit, config, WORKER_TOML)
    log.configure(**context.meta[LOGGING], also=path.parent / read_config(path).state / LOG)
    with open_worker(path) as service, stopped_by_signals(service.stop):
        service.start()
        keep_what_is_here()
        service.join()
    if service.leaving == "restart":
        raise typer.Exit(RESTART)


Run = Annotated[str | None, typer.Argument(metavar="RUN", help="The run's name, or its directory.")]
Without = Annotated[list[str] | None, typer.Option(help="Leave out this site; may be given again.")]
Otherwise = Annotated[str | None, typer.Option(help="Merge with this strategy instead.")]


@app.command()
def replay(
    run: Run = None,
    config: HubConfig = AGGREGATOR_TOML,
    kit: HubKit = None,
    upto: Annotated[int | None, typer.Option(min=1, help="Stop after this version.")] = None,
    without: Without = None,
    strategy: Otherwise = None,
    audit: Annotated[bool, typer.Option("--audit", help="Only check the ledger and every stored weight.")] = False,
    old: OldRun = None,
) -> None:
    """Rebuild a run's versions from the journal and compare them, or see what would have been."""
    from fledge import history

    name, config = the_run(run, old), config_in(kit, config, AGGREGATOR_TOML)
    if audit:
        lines = history.audit_run(config, name)
    else:
        lines = history.replay_run(config, name, upto=upto, without=without or (), strategy=strategy)
    good = True
    for line in lines:
        typer.echo(line.text)
        good = good and line.good
    if not good:
        raise typer.Exit(1)


@app.command()
def export(
    run: Run = None,
    number: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="A number, best or newest; default: the best, if known.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new file; the safetensors library opens it.")
    ] = None,
    config: HubConfig = AGGREGATOR_TOML,
    kit: HubKit = None,
    raw: Annotated[bool, typer.Option("--raw", help="The raw version, not the released average.")] = False,
    without: Without = None,
    strategy: Otherwise = None,
    old: OldRun = None,
    model: Annotated[int | None, typer.Option("--model", min=0, hidden=True, help="As VERSION, once.")] = None,
) -> None:
    """Write a version of the model, as it is or as it would have been, as a plain safetensors file."""
    from fledge import history
    from fledge.ctl.model_actions import version_of

    if old is not None and out is None and run is not None:
        out = Path(run)  # as it was written once: `fledge export FILE --run RUN`
        run = None
    if out is None:
        raise ConfigError("name a new file for the model: fledge export RUN -o FILE")
    version = model if number is None else version_of(number)
    otherwise = history.Otherwise(without=tuple(without or ()), strategy=strategy)
    config = config_in(kit, config, AGGREGATOR_TOML)
    done = history.export_run(config, the_run(run, old), out, version=version, released=not raw, otherwise=otherwise)
    chosen = f" ({done.chosen})" if done.chosen else ""
    typer.echo(f"{out}: version {done.version}{chosen}, {done.size} bytes")


@app.command()
def collect(config: HubConfig = AGGREGATOR_TOML, kit: HubKit = None) -> None:
    """Delete objects older than 14 days that no run refers to any more (left by crashes and refused updates)."""
    from fledge import history

    done = history.collect(config_in(kit, config, AGGREGATOR_TOML))
    typer.echo(f"{done.count} objects, {done.bytes} bytes collected")


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Faster hospitals: under 40 seconds.")] = False,
    broker: Annotated[str, typer.Option(help="A real broker: amqp://…; with a login: FLEDGE_BROKER.")] = "",
    store: Annotated[str, typer.Option(help="A real store: s3://…; with a login: FLEDGE_STORE.")] = "",
    processes: Annotated[bool, typer.Option("--processes", help="One process per hospital.")] = False,
    seed: Annotated[int, typer.Option(help="Of the data's split and the speeds.")] = 42,
    sites: Annotated[int, typer.Option(min=2, max=32, help="Hospitals.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Keep all files in this new directory.")] = None,
) -> None:
    """Watch hospitals train one model together, asynchronously; then the same synchronously."""
    from fledge.demo.demo import Options, run_demo

    if broker or store or any(os.environ.get(name) for name in ("FLEDGE_BROKER", "FLEDGE_STORE")):
        broker = server_url(broker, "--broker", "FLEDGE_BROKER")
        store = server_url(store, "--store", "FLEDGE_STORE")
    options = Options(quick=quick, broker=broker, store=store, processes=processes, seed=seed, sites=sites, out=out)
    if not run_demo(options):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
