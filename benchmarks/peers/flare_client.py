"""What NVIDIA FLARE runs at each site: receive, add noise, send."""

from __future__ import annotations

import nvflare.client as flare

from benchmarks.peers import layers


def main() -> None:
    """Until the job ends."""
    flare.init()
    site = int(flare.get_site_name().rpartition("-")[2])
    while flare.is_running():
        model = flare.receive()
        layers.train((weight.numpy() for weight in model.params.values()), site)
        flare.send(flare.FLModel(params=model.params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))


if __name__ == "__main__":
    main()
