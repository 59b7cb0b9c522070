"""The running aggregator: threads, queues and wiring around the rules."""
