"""`fledge data`: a hospital's images made ready for training, and figures about them; all of it stays here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fledge.cli.options import WORKER_TOML, Also, AsJson, DropDuplicates, SkipRefused, taken
from fledge.cli.progress import progress_bars
from fledge.cli.site import state_of
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from worker.data.datalist import Datalist
    from worker.data.prepare import PreparedData
    from worker.policy import SitePolicy
    from worker.statistics.figures import Value

app = typer.Typer(
    name="data", help="At a hospital: make images ready for training, and look at their figures.", no_args_is_help=True
)

Images = Annotated[Path, typer.Argument(metavar="IN", help="A folder of DICOM series, or of NIfTI or PNG files.")]
Labels = Annotated[
    Path | None, typer.Option(help="A folder of labels named as their images; or a CSV file image,label.")
]
Kind = Annotated[str, typer.Option(help="segmentation, or classification (a folder or CSV line for each class).")]
Patients = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help=r"Where the patient stands in a path, such as '^(\d+)_'; DICOM says it itself."),
]
LabelNames = Annotated[
    list[str] | None, typer.Option(metavar="NUMBER=NAME", help="A class's name, such as 1=liver; once for each.")
]
Classes = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="All classes of the federation in the order of their numbers: a,b,c or a file."),
]
SkipUnlabelled = Annotated[bool, typer.Option("--skip-unlabelled", help="Leave out images without a label.")]


@app.command()
def prepare(
    images: Images,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for what training reads.")],
    labels: Labels = None,
    task: Kind = "segmentation",
    validation: Annotated[float, typer.Option(help="Share of the patients to validate with.")] = 0.2,
    test: Annotated[float, typer.Option(help="Share of the patients to keep for the end.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed makes another split.")] = 0,
    link: Annotated[bool, typer.Option("--link/--copy", help="Share NIfTI and PNG files, or copy them.")] = False,
    patients: Patients = None,
    classes: Classes = None,
    label_name: LabelNames = None,
    modality: Annotated[str, typer.Option(help="Such as CT; DICOM says it itself.")] = "",
    drop_duplicates: DropDuplicates = False,
    also: Also = None,
    skip_unlabelled: SkipUnlabelled = False,
    skip_refused: SkipRefused = False,
    key: Annotated[
        Path | None, typer.Option(help="The .patients.key of an earlier OUT: patients are called the same again.")
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="Write here which case is which patient; it stays private (mode 0600).")
    ] = None,
) -> None:
    """Make OUT with imagesTr, labelsTr and dataset.json from images and their labels, split by patient.

    Files are known by their content. Cases get names that say nothing; OUT/.patients.key (mode 0600) makes them. No
    patient is in two lists, and later ones move no other. OUT is made completely or not at all, never over another.
    """
    from worker.data.classes import class_list
    from worker.data.datalist import Task
    from worker.data.prepare import PrepareRequest
    from worker.data.prepare import prepare as make
    from worker.data.splits import Shares

    if task not in (Task.SEGMENTATION.value, Task.CLASSIFICATION.value):
        raise ConfigError(f"--task {task!r}: say segmentation or classification")
    if classes is not None and label_name:
        raise ConfigError("--classes and --label-name both name the classes; say one of them")
    wanted = PrepareRequest(
        images=images,
        out=out,
        labels=labels,
        task=Task(task),
        shares=Shares(validation=validation, test=test, seed=seed),
        patients=_pattern(patients),
        classes=() if classes is None else class_list(classes),
        names=_label_names(label_name or ()),
        modality=modality,
        link=link,
        drop_duplicates=drop_duplicates,
        also=taken(also),
        skip_unlabelled=skip_unlabelled,
        skip_refused=skip_refused,
        key=key,
        mapping=mapping,
    )
    with progress_bars() as progress:
        made = make(wanted, partial(progress, "preparing"))
    _tell(out, made, task == Task.CLASSIFICATION.value and classes is None)


@app.command()
def stats(
    directory: Annotated[Path, typer.Argument(metavar="DATASET_DIR", help="The folder that holds the datalist.")],
    listed: Annotated[str, typer.Option("--list", help="The datalist in it.")] = "dataset.json",
    min_cell: Annotated[int, typer.Option(min=10, help="Patients a figure needs, at least.")] = 10,
    unsuppressed: Annotated[
        bool, typer.Option("--unsuppressed", help="Show everything, for eyes at the hospital only.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT.png", help="Draw them too, without what is withheld.")
    ] = None,
    as_json: AsJson = False,
    share: Annotated[
        bool, typer.Option("--share", help="Let operators ask for these figures, as far as the policy allows.")
    ] = False,
    kit: Annotated[Path | None, typer.Option(help="With --share: the site's kit, which holds worker.toml.")] = None,
) -> None:
    """Intensity, spacing, shape and classes of a data set, over patients; what is from fewer than ten is withheld.

    Nothing leaves the site unless --share says so and policy.toml has `statistics = true`; even then operators get what
    is shown here without --unsuppressed, and only when they ask.
    """
    from worker.data.datalist_parser import read_datalist
    from worker.statistics.figures import Cohort, DataSummary
    from worker.statistics.histograms import histograms
    from worker.statistics.measure import class_names, measure, task_of
    from worker.statistics.plot import check_free, draw

    state = policy = None
    if share:
        if unsuppressed:
            raise ConfigError("--share and --unsuppressed do not go together; what leaves the site is suppressed")
        state, policy = _site(kit)
    datalist = read_datalist(directory / listed)
    for caution in datalist.cautions:
        typer.echo(f"beware: {caution}", err=True)
    summary = DataSummary(
        task=task_of(datalist), classes=class_names(datalist), min_cell=min_cell, suppressed=not unsuppressed
    )
    if policy is not None:
        _check_shared(policy, datalist, summary.classes, directory / listed)
    if plot is not None:
        check_free(plot)
    with progress_bars() as progress:
        cohort = Cohort.of(measure(datalist, directory, partial(progress, "measuring")), summary.classes, summary.task)
    figures = summary.told_of(cohort)
    if as_json:
        typer.echo(json.dumps({"figures": figures, "patients_known": datalist.patients_known}))
    else:
        _draw(figures)
        if not unsuppressed:
            typer.echo(f"figures of fewer than {min_cell} patients are withheld (--unsuppressed shows all)", err=True)
        if not datalist.patients_known:
            typer.echo("the datalist names no patients (`patients`): every image counted as one", err=True)
    if plot is not None:
        draw(drawn := list(histograms(summary, cohort, figures)), figures, plot)
        typer.echo(f"{plot}: {len(drawn)} histograms, of figures whose number of patients is told", err=True)
    if state is not None:
        _share(state, figures)


def _check_shared(policy: SitePolicy, datalist: Datalist, classes: Sequence[str], path: Path) -> None:
    policy.check_statistics(classes)
    if not datalist.patients_known:
        raise ConfigError(
            f"{path} does not say whose images it lists, and ten images may be of one patient; "
            "`fledge data prepare` writes `patients`, or add it: pseudonyms, each with the list of its images"
        )


def _draw(figures: Mapping[str, Value]) -> None:
    """Numbers of patients line by line, then a row for each figure with how it varies over patients."""
    from fledge.process.terminal import clean

    columns = ("mean", "std", "min", "p25", "median", "p75", "max")
    rows: dict[str, dict[str, Value]] = {}
    for name, value in figures.items():
        what, _, how = name.rpartition(".")
        if how in columns and not name.startswith("patients"):
            rows.setdefault(what, {})[how] = value
        else:
            typer.echo(clean(f"{name}  {value}"))
    shown = [each for each in columns if any(each in row for row in rows.values())]
    if rows:
        typer.echo(f"{'over patients':34}" + "".join(f"{each:>12}" for each in shown))
    for what, row in rows.items():
        typer.echo(clean(f"{what:34}") + "".join(f"{row.get(each, ''):>12}" for each in shown))


def _share(state: Path, figures: Mapping[str, Value]) -> None:
    from broker.runtime.json_files import write_note
    from worker.statistics.document import LIMIT, STATISTICS, check_change, check_names, document, load

    path = state / STATISTICS
    check_names(figures)
    table = document(figures)
    if path.exists():
        with path.open("rb") as file:
            check_change(load(file.read(LIMIT + 1)), figures)
    write_note(path, table)
    typer.echo(f"{path}: operators who may look at this site get these figures with `fledge ctl stats`", err=True)


def _site(kit: Path | None) -> tuple[Path, SitePolicy]:
    """The state directory and policy of the site whose kit this is."""
    from worker.config import read_config, site_policy

    if kit is None:
        raise ConfigError("--share needs the site's policy; name the folder of worker.toml with --kit")
    config = kit / WORKER_TOML
    return state_of(config), site_policy(read_config(config), kit)


def _tell(out: Path, made: PreparedData, own_numbers: bool) -> None:
    from worker.data.sources import counted, few, told_lines
    from worker.data.splits import SPLITS

    entries = made.datalist.entries
    for split in SPLITS:
        chosen = [entry for entry in entries if entry.split == split]
        if chosen:
            typer.echo(f"{split}: {len(chosen)} images of {len({entry.patient for entry in chosen})} patients")
    typer.echo(f"classes: {few(f'{number}={name}' for number, name in sorted(made.datalist.labels.items()))}")
    if made.missing:
        typer.echo(f"classes that no image here has: {few(made.missing)}")
    if made.white:
        typer.echo("labels hold 0 and 255 alone, black and white: 255 became class 1")
    if own_numbers:
        typer.echo("classes are numbered by what is here; if other sites have others, say --classes with those of all")
    if made.unlabelled:
        typer.echo(f"left out without a label: {made.unlabelled} images")
    if made.dropped:
        typer.echo(f"left out as duplicates: {few(made.dropped)}")
    for line in counted(made.left_out):
        typer.echo(f"left out, {line}")
    for line in told_lines(made.refused):
        typer.echo(line)
    if not made.patients_said:
        typer.echo("every image was taken for a patient of its own; if that is wrong, say --patients REGEX")
    typer.echo(f"{out}: the dataset_dir of a run; look at it with `fledge data stats {out}`")


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ConfigError(f"--patients {text!r} is no regular expression: {error}") from error


def _label_names(given: Sequence[str]) -> dict[int, str]:
    names: dict[int, str] = {}
    for text in given:
        number, equals, name = text.partition("=")
        if not equals or not name.strip() or not number.strip().isdecimal():
            raise ConfigError(f"--label-name {text!r}: write NUMBER=NAME, such as 1=liver")
        if int(number) in names or name.strip() in names.values():
            raise ConfigError(
                f"--label-name {text!r}: its number or its name was given before; each belongs to one class"
            )
        names[int(number)] = name.strip()
    return names
