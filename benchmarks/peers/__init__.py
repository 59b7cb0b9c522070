"""The same job with other systems, each in an environment of its own: see `benchmarks/peers.md`."""
