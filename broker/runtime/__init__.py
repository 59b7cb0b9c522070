"""Foundations of both programs that move no bytes: event loop, threads, SQLite, TOML settings, health files."""
