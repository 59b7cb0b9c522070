#!/bin/sh
# Starts the aggregator of federation @{federation} with the run in the folder `run` beside this file: sh start.sh
# The same in a container:                                                                     sh start.sh docker
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p state
if [ ! -d run ]; then
    echo "There is no run here yet; make one with: fledge init-run module:factory -o $(pwd)/run" >&2
    exit 2
fi
if [ "${1:-}" = docker ]; then
    FLEDGE_USER="$(id -u):$(id -g)"
    export FLEDGE_USER
    exec docker compose up --detach
fi
exec fledge aggregator --config aggregator.toml --run run
