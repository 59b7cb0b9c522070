"""Fixtures for all suites; those that start servers live in modules of their own."""

from __future__ import annotations

pytest_plugins = ["tests.support.s3_fixtures", "tests.support.rabbit_fixtures"]
