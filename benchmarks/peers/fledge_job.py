"""The job with fledge: what `benchmarks.pipeline --broker amqp --store s3` runs, watched as the others are.

    python -m benchmarks.peers.fledge_job --size-mb 100

Aggregator and workers are processes of their own through the command line, beside a private RabbitMQ node and a
private S3 server, whose processor time counts too. Updates are signed and encrypted, as they always are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import pipeline_events, pipeline_places
from benchmarks.peers.measure import Figures, Job, Watch, table


def run(job: Job, work: Path) -> Figures:
    """Run the job in the empty directory `work`, each version from all sites; until the last version is committed."""
    task = pipeline_places.Task(
        size_mb=job.size_mb, sites=job.sites, versions=job.versions, buffer=job.sites, store="s3", broker="amqp"
    )
    with Watch() as watch:
        entries = pipeline_places.run(task, work, seconds=7200).entries
    began = min(pipeline_events.first_steps(entries).values())
    ended = max(pipeline_events.commits(entries).values())
    return watch.figures(began, ended, server=["--json-logs aggregator"], client=["--json-logs worker"])


def main() -> None:
    """Run the job and print its row."""
    job = Job.parse(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory(prefix="fledge-") as folder:
        print(table(run(job, Path(folder)).row("fledge", job)))


if __name__ == "__main__":
    main()
