#!/bin/sh
# Whether a service works, asked every few seconds: it keeps the second until which it counts as healthy in a file.
# `fledge healthcheck` says the same with a reason, but starts Python each time.
waits=${FLEDGE_WAITS:-/dev/shm/fledge-waits}
if [ -e "$waits" ]; then
    cat "$waits"
elif read -r until 2>/dev/null <state/healthy && [ "$until" -gt "$(date +%s)" ]; then
    exit 0
else
    echo "not accepted by the other side, or too long ago; fledge healthcheck says why"
fi
exit 1
