"""The worker's state machine: events in, decisions out, no I/O."""
