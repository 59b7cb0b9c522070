"""What moves and keeps bytes: transports, blob stores, the outbox relay. Imports `protocol` only."""
