"""Stores of encrypted chunks and records: in memory, in a directory, in S3."""
