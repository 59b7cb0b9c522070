"""Measurements that print a table and write JSON; run them as modules: `python -m benchmarks.convergence`."""
