"""The job with NVIDIA FLARE: a server and a client for each site, as its `poc` command provisions and starts them.

    python3 -m venv ../flare && ../flare/bin/pip install "nvflare==2.9.0" torch
    ../flare/bin/python -m benchmarks.peers.flare_job --size-mb 100

What FLARE offers for large models: tensors instead of numpy arrays (`ExchangeFormat.PYTORCH`), which are streamed in
chunks, and tensor disk offload at the server. Everything else as its recipe for FedAvg has it; the processes talk
HTTP with the certificates that `poc` makes, and the server writes the model to the disk every round.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.peers.measure import Figures, Job, Watch, installed, table

_ROOT = Path(__file__).parents[2]
_BEGAN, _ENDED, _FINISHED = "return task to client.", "End persist model on server.", "Server runner finished."
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
_LONGEST_S = 7200


def times(log: str, event: str) -> list[float]:
    """The times (as time.time() has them) of a log's lines that tell of an event."""
    found = [_TIME.search(line) for line in log.splitlines() if event in line]
    return [datetime.strptime(each[0], "%Y-%m-%d %H:%M:%S,%f").timestamp() for each in found if each]


def start(job: Job) -> None:
    """Provision and start server and clients, and submit the job."""
    from nvflare.app_opt.pt.recipes import FedAvgRecipe
    from nvflare.client.config import ExchangeFormat
    from nvflare.recipe import PocEnv

    recipe = FedAvgRecipe(
        name="noise",
        model={"class_path": "benchmarks.peers.flare_model.Layers", "args": {"size_mb": job.size_mb}},
        min_clients=job.sites,
        num_rounds=job.versions,
        train_script=str(Path(__file__).with_name("flare_client.py")),
        server_expected_format=ExchangeFormat.PYTORCH,
        enable_tensor_disk_offload=True,
    )
    with contextlib.redirect_stdout(sys.stderr):
        recipe.execute(PocEnv(num_clients=job.sites))


def run(job: Job, work: Path) -> Figures:
    """Run the job in the empty directory `work`.

    The time begins when the first site is handed its task, because FLARE calls a round started while the sites'
    processes still start, and ends when the last version is on the disk.

    Raises:
        RuntimeError: not every version was made.
    """
    os.environ |= {"HOME": str(work), "NVFLARE_POC_WORKSPACE": str(work / "poc"), "PYTHONPATH": str(_ROOT)}
    with Watch() as watch:
        start(job)
        [log] = work.glob("poc/*/prod_00/server/poc_console.log")
        deadline = time.monotonic() + _LONGEST_S
        while _FINISHED not in (text := log.read_text()) and time.monotonic() < deadline:
            time.sleep(1)
    began, ended = times(text, _BEGAN), times(text, _ENDED)
    if len(ended) != job.versions:
        raise RuntimeError(f"{len(ended)} versions instead of {job.versions}:\n{text[-3000:]}")
    return watch.figures(began[0], ended[-1], server=["nvflare.private.fed.app.server"], client=["fed.app.client"])


def main() -> None:
    """Run the job and print its row."""
    job = Job.parse(__doc__.splitlines()[0])
    version = installed("nvflare", __doc__)
    installed("torch", __doc__)
    with tempfile.TemporaryDirectory(prefix="flare-") as folder:
        print(table(run(job, Path(folder)).row(f"NVIDIA FLARE {version}", job)))


if __name__ == "__main__":
    main()
