#!/usr/bin/env bash
# Sets up everything `make demo` and `make test` need, once: the virtual environment with pinned packages and,
# with the argument `servers`, RabbitMQ and HAProxy from Debian. Safe to run again; it does nothing when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = servers ] && ! { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && [ -x /usr/sbin/haproxy ]; }; then
    install="apt-get update && apt-get install -y --no-install-recommends rabbitmq-server haproxy"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing RabbitMQ and HAProxy (tests run private ones; the system services are not touched)"
        log=$(mktemp)
        bash -c "export DEBIAN_FRONTEND=noninteractive; $install" >"$log" 2>&1 ||
            { tail -n 20 "$log"; echo "setup: they could not be installed; the log is above"; exit 1; }
    else
        echo "setup: the tests need RabbitMQ and HAProxy. Run this line, then try again:"
        echo "    sudo sh -c '$install'"
        exit 1
    fi
fi

stamp=.venv/.fledge-setup
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
    python=$(command -v python3.11 || command -v python3)
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "setup: fledge needs Python 3.11 or newer, found $("$python" --version)"; exit 1; }
    echo "setup: creating .venv with pinned packages (a few minutes the first time)"
    "$python" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
    touch "$stamp"
fi
