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
    python=
    for name in python3.11 python3.12 python3.13 python3.14 python3; do
        # A command of pyenv's may be there and fail, if its version is not the chosen one.
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$name; break; fi
    done
    [ -n "$python" ] || { echo "setup: fledge needs Python 3.11 or newer; there is $(python3 --version 2>&1)"; exit 1; }
    echo "setup: creating .venv with $("$python" --version) and pinned packages (a few minutes the first time)"
    "$python" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
    touch "$stamp"
fi
