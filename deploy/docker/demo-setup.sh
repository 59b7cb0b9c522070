#!/bin/sh
# Makes the demo federation of docker-compose.yml once: keys, configuration and the first model. Does nothing if it is there.
set -eu
if [ -e federation/aggregator.toml ]; then
    exit 0
fi
fledge new-federation federation --name demo --site site-1 --site site-2 --site site-3 \
    --broker "$FLEDGE_BROKER" --store "$FLEDGE_STORE" --trainer fledge.demo_task:trainer
for number in 0 1 2; do
    printf '\n[options]\nseed = 42\nhospitals = 3\nhospital = %s\nseconds = 2.0\n' "$number" \
        >>"federation/sites/site-$((number + 1))/worker.toml"
done
fledge init-run fledge.demo_task:trainer -o run --option seed=42 --option hospitals=3
