#!/bin/sh
# Starts the aggregator of federation @{federation}: sh start.sh
# The same in a container:               sh start.sh docker
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p state
if [ "${1:-}" = docker ]; then
    FLEDGE_USER="$(id -u):$(id -g)"
    export FLEDGE_USER
    exec docker compose up --detach
fi
exec fledge aggregator --config aggregator.toml
