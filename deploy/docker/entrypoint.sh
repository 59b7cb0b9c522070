#!/bin/sh
# What the images start: fledge. Of a worker and an aggregator it also knows what no restart policy of an engine knows:
# the exit codes after which nobody should start them again by themselves. It then stays, visibly unhealthy, until
# somebody acts; a reboot of the machine is a new attempt. Everything else is left to the policy.
set -u
case "$* " in
    *" --help "*) exec fledge "$@" ;;
    "worker "* | "aggregator "*) ;;
    *) exec fledge "$@" ;;
esac
waits=${FLEDGE_WAITS:-/dev/shm/fledge-waits}
rm -f state/healthy "$waits" # what the life before this one said

asked=0
child=
trap 'asked=$((asked + 1)); [ -z "$child" ] || kill -s TERM "$child" 2>/dev/null' TERM INT
fledge "$@" &
child=$!
[ "$asked" = 0 ] || kill -s TERM "$child"
code=1
while :; do
    before=$asked
    wait "$child" # a signal ends it, too
    found=$?
    [ "$found" = 127 ] || code=$found # 127: the wait before this one already had its code
    [ "$asked" != "$before" ] || break
done
[ "$asked" = 0 ] || exit "$code"

case $code in
    0) why="it ended in order, as an operator ordered" ;;
    2) why="its configuration is wrong, see the line above" ;;
    3) why="another aggregator has taken over its database" ;;
    *) exit "$code" ;;
esac
echo "fledge $1: $why (exit code $code). It is started again when somebody does so: docker compose restart" |
    tee "$waits" >&2
sleep infinity &
child=$!
[ "$asked" != 0 ] || wait "$child"
exit "$code"
