#!/bin/sh
# Starts the aggregator of federation @{federation}: sh start.sh
# The same in a container:               sh start.sh docker
set -eu
cd "$(dirname "$0")"
umask 077
user=$(id -u):$(id -g)
# By sudo it is done as the kit's owner would do it.
[ "${user%:*}" != 0 ] || user=$(ls -dn . | awk '{print $3 ":" $4}')
handed() { [ "$(id -u)" != 0 ] || chown -h "$user" "$1"; }
[ -d state ] || { mkdir state; handed state; }
if [ "${1:-}" = docker ]; then
    # Every `docker compose` in this folder reads .env. What stands in there is kept: FLEDGE_IMAGE, say, or another user.
    [ -e .env ] || { : >.env; handed .env; }
    case $(docker info --format '{{.SecurityOptions}}' 2>/dev/null) in
        *rootless*) user=0:0 ;; # there, root is the engine's own user
    esac
    # A folder of this name may stand somewhere else, too.
    project=$(printf %s 'fledge-@{federation}_@{name}' | tr A-Z a-z | tr -c a-z0-9_- -)
    for line in "FLEDGE_USER=$user" "COMPOSE_PROJECT_NAME=$project"; do
        grep -Eq "^ *(export +)?${line%%=*} *[=:]" .env || printf '\n%s\n' "$line" >>.env
    done
    docker compose up --detach && exit
    echo "start.sh: nothing was started; if the image is missing, README.md says where it comes from" >&2
    exit 1
fi
exec fledge aggregator --config aggregator.toml
