#!/usr/bin/env bash
# Looks over everything that is deployed, without an engine: Dockerfile, compose file, the servers' settings, scripts.
# `make test` does the same; here a linter that is missing is an error. Debian has docker-compose and haproxy.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH:/usr/sbin

for program in hadolint docker-compose haproxy openssl; do
    command -v "$program" >/dev/null || { echo "lint-deploy: $program is not installed"; exit 1; }
done
exec .venv/bin/python -m pytest -q tests/unit/deploy/docker/test_compose.py
