"""The seeded simulation: aggregator and workers under a scheduler that reorders, repeats, loses and crashes."""
