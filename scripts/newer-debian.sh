#!/usr/bin/env bash
# Unpacks a newer Debian beside this one, for its RabbitMQ and its Python; this machine's packages stay as they are.
#
#     scripts/newer-debian.sh trixie      RabbitMQ 4.0, Python 3.13
#     scripts/newer-debian.sh forky       RabbitMQ 4.3, Python 3.14
#
# A second argument is the directory, instead of /var/tmp/fledge-debian/SUITE, and further ones are packages instead of
# RabbitMQ and Python. Afterwards its `bin` holds
#   rabbitmq-server, rabbitmqctl, epmd ...     for the tests: RABBITMQ_BIN=DIRECTORY/bin
#   python3.13 (or whichever it is)            and `inside COMMAND ...`, for what runs in a virtual environment of it
# Each runs with the newer Debian's /usr, in a mount namespace that ends with it. Safe to run again, also twice at once.
# Needs root, debootstrap, 700 MB and a few minutes.
set -euo pipefail

suite=${1:-}
[ -n "$suite" ] || { echo "usage: scripts/newer-debian.sh SUITE [DIRECTORY [PACKAGE...]], e.g. scripts/newer-debian.sh trixie"; exit 2; }
directory=$(realpath -m "${2:-/var/tmp/fledge-debian/$suite}")
root=$directory/root
packages=("${@:3}")
[ "${#packages[@]}" != 0 ] || packages=(rabbitmq-server python3-venv)

refuse() { echo "newer-debian: $1"; exit 1; }

mirror() {  # the one that apt uses for Debian itself
    awk '/^URIs:/ {print $2; exit} $1 == "deb" {for (i = 2; i < 5; i++) if ($i ~ /^http/) {print $i; exit}}' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true
}

unpack() {
    [ "$(id -u)" = 0 ] || refuse "unpacking $suite needs root. Run: sudo scripts/newer-debian.sh $suite $directory"
    [ -e /etc/debian_version ] && [ -L /bin ] ||
        refuse "this machine is no Debian with one /usr; its programs cannot be swapped for those of $suite"
    command -v debootstrap >/dev/null || refuse "debootstrap is missing. Run: apt-get install -y debootstrap"
    local url part log
    url=$(mirror)
    part=$directory/part
    log=$directory/log
    [ -d "$part" ] && rm -rf --one-file-system "$part"
    echo "newer-debian: unpacking $suite with ${packages[*]} into $directory (a few minutes)"
    # Each newer suite is made as sid is; debootstrap may not have heard of its name yet.
    debootstrap --variant=minbase "$suite" "$part" "${url:-http://deb.debian.org/debian}" sid >"$log" 2>&1 &&
        unshare --mount sh -ec '
            printf "#!/bin/sh\nexit 101\n" >"$0/usr/sbin/policy-rc.d"  # nothing is started
            chmod +x "$0/usr/sbin/policy-rc.d"
            cp /etc/resolv.conf "$0/etc/resolv.conf"
            mount --rbind /dev "$0/dev"
            mount -t proc proc "$0/proc"
            export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin
            # Its signatures are checked; that a mirror may lag behind does no harm here.
            chroot "$0" apt-get -o Acquire::Check-Valid-Until=false update -q
            chroot "$0" apt-get install -q -y --no-install-recommends "$@"
            chroot "$0" apt-get clean' "$part" "${packages[@]}" >>"$log" 2>&1 ||
        { tail -n 20 "$log"; refuse "$suite could not be unpacked; the end of $log is above"; }
    mv "$part" "$root"
}

program() {  # program NAME: what is read becomes an executable of that name in bin
    cat >"$directory/bin/$1.new"
    chmod +x "$directory/bin/$1.new"
    mv "$directory/bin/$1.new" "$directory/bin/$1"
}

wrappers() {
    mkdir -p "$directory/bin"
    ln -sfn root/usr/lib/rabbitmq/lib "$directory/lib"  # beside bin, where Debian has it: its names tell the version
    program inside <<'INSIDE'
#!/bin/sh
# Runs a command with the programs and libraries of the Debian beside this directory; only it and its children see them.
here=$(dirname "$(dirname "$(realpath "$0")")")
[ "$(id -u)" = 0 ] && user= || user="--map-current-user --keep-caps"
# The process stays this one, so whoever started it can kill it; the mounts end with the last process that sees them.
exec unshare $user --mount sh -ec '
    mount --rbind /usr/local "$0/usr/local"
    mount --bind "$0/etc/ld.so.cache" /etc/ld.so.cache
    mount --rbind "$0/usr" /usr
    exec "$@"' "$here/root" "$@"
INSIDE
    local path
    shopt -s nullglob  # of these, what there is
    for path in "$root"/usr/lib/rabbitmq/bin/rabbitmq* "$root"/usr/bin/{[e]pmd,python3.[0-9]*,radosgw*}; do
        printf '#!/bin/sh\nexec "$(dirname "$(realpath "$0")")/inside" %s "$@"\n' "${path#"$root"}" |
            program "$(basename "$path")"
    done
}

mkdir -p "$directory"
exec 9>"$directory/lock"
flock 9
[ -d "$root" ] || unpack
wrappers
echo "newer-debian: $suite is in $directory; $(ls "$directory/bin" | tr '\n' ' ')"
