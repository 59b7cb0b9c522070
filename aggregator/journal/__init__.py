"""The aggregator's database: journal of updates, versions, ledger, outbox."""
