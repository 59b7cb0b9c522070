"""The running worker: threads, queues and wiring around the rules."""
