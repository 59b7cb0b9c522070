"""Bringing brokers and stores to what a federation needs. Imports `broker` and `protocol` only."""
