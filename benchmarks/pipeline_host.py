"""A whole federation in one process, as `fledge demo` has it: the pipeline benchmark starts this for `--broker memory`.

    python -m benchmarks.pipeline_host FEDERATION RUN SITE...

Logs as JSON lines on standard error; tells its memory on standard output: idle with the aggregator started, then at
the end, which is when the run has ended and standard input is closed.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.pipeline_model import peak_kib
from fledge.bootstrap import open_aggregator, open_worker
from fledge.federation import AGGREGATOR_TOML, WORKER_TOML
from fledge.process import log


def main() -> None:
    """Serve until the run has ended."""
    federation, run, sites = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    log.configure(json_lines=True)
    with ExitStack() as stack:
        aggregator = stack.enter_context(open_aggregator(federation / AGGREGATOR_TOML, run))
        aggregator.start()
        print(f"idle {peak_kib(field='VmRSS')}", flush=True)
        for site in sites:
            stack.enter_context(open_worker(federation / "sites" / site / WORKER_TOML)).start()
        aggregator.ended.wait()
        print(f"ended {peak_kib()}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
