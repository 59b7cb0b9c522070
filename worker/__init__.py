"""A hospital: training, privacy filters, egress, outbox and local store. Imports `broker` and `protocol` only."""
