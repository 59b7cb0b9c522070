#!/bin/sh
# Starts the worker of site @{name}: sh start.sh
# The same in a container:            sh start.sh docker
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p state
if [ "${1:-}" = docker ]; then
    FLEDGE_USER="$(id -u):$(id -g)"
    export FLEDGE_USER
    exec docker compose up --detach
fi
exec fledge worker --kit .
